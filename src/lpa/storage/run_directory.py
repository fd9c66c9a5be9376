"""The names of the files of a run directory, for everything that writes or reads one."""

CONFIG_FILE = "config.yaml"
RESULT_FILE = "result.json"
TEST_FILE = "test.json"  # of a study: the evaluation on the test split
METRICS_FILE = "metrics.jsonl"
DAMAGED_METRICS_FILE = f"{METRICS_FILE}.damaged"
SAMPLES_FILE = "samples.jsonl"
INITIAL_WEIGHTS_FILE = "initial_weights.json"
LOGGER_IDS_FILE = "loggers.json"
LAUNCH_FILE = ".launch"

FINAL_DIRECTORY = "final"
BEST_DIRECTORY = "best"
BEST_EVALUATION_FILE = "best.json"  # in the directory of the best model
SCORES_DIRECTORY = "scores"  # of a study: further evaluations of the run, as JSON

CHECKPOINTS_DIRECTORY = "checkpoints"
LATEST_CHECKPOINT_FILE = "latest.json"  # in the directory of checkpoints
CHECKPOINT_MANIFEST_FILE = "manifest.json"  # in each checkpoint
