"""Fine-tuning on photographs from convolutions trained on ImageNet, against training from scratch."""
