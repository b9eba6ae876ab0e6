"""What a run leaves behind and a file carries: record, weights, preprocessing, predictor."""
