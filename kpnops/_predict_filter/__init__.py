"""The fused head: a 1x1 convolution, a softmax over the taps and the filter, without the logits."""
