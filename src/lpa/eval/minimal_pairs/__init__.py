"""Minimal pairs: does a model prefer a sentence to the same one with a fault in its grammar?"""
