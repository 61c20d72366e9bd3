"""The operator's metrics: which there are (`catalogue`), and how they are collected."""
