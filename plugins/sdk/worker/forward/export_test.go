package forward

// ReplaceModel exports replaceModel.
func ReplaceModel(body []byte, model string) []byte { return replaceModel(body, model) }
