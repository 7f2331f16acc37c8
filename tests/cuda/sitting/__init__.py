"""What `on_gpu.py` does in one sitting at a GPU: its parts, a file a subject, and the table of their outcomes."""
