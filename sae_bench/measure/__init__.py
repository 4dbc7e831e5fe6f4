"""What is measured? Properties, their statistics and the labelled data that they read."""
