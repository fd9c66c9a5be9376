"""What a model directory holds for those who share it: code that opens it anywhere, and a card."""
