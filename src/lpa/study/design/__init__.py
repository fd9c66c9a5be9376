"""What a study asks for: grids, the models and runs that follow from them, and their index."""
