"""What benchmarks ask, how their answers are graded, and the numbers that come out."""
