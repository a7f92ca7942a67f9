package forward

// ReplaceModel is replaceModel.
func ReplaceModel(body []byte, model string) []byte { return replaceModel(body, model) }
