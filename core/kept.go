package core

// KeptAct is what one queen asks another to do with an answer that the other keeps.
type KeptAct string

// The acts.
const (
	KeptGet    KeptAct = "get"
	KeptDelete KeptAct = "delete"
	KeptCancel KeptAct = "cancel" // cancels an answer that is still being generated
)
