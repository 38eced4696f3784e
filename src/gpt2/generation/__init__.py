"""From a trained model to text: choosing tokens, running the model, spelling what it says."""
