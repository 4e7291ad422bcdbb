"""What a trained network says about images."""
