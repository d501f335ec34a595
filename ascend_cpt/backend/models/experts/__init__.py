"""The experts of a mixture of experts: the router, its sums, and their monitor."""
