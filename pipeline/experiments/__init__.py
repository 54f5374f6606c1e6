"""The papers' experiments on simulated logs: `watchnext reproduce`."""
