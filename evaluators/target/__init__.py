"""What is attacked: estimators, the judge, the ball."""
