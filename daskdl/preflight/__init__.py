"""What can be said of data and workers before a training: facts, what they mean, and how it is shown."""
