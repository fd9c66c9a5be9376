"""GLUE (Wang et al. 2019, arXiv 1804.07461): fine-tuning on each task, scored with its official metric."""
