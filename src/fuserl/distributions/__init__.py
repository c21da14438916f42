"""Next-token distributions of several models on one text: aligned, mapped into the target's vocabulary, blended, kept."""
