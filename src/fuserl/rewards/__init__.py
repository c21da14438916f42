"""What answers are worth: scorers, their combination into rewards and verdicts, the verb `score`."""
