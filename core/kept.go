package core

// KeptAct is what one queen asks another to do with an answer that it keeps.
type KeptAct string

// The acts.
const (
	KeptGet    KeptAct = "get"
	KeptDelete KeptAct = "delete"
	KeptCancel KeptAct = "cancel" // of one that is being made
)
