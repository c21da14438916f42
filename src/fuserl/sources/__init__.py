"""What the sources say: engines that answer requests, wrappers around them, the verb `generate`."""
