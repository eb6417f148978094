"""What is documented under names that begin with `sglang.test`: what programs share that compare backends."""
