package port

import "fmt"

// Engine is how TAPs are read and written.
type Engine string

// The engines: a system call for each frame, or one for many.
const (
	ReadWrite Engine = "readwrite"
	IOUring   Engine = "io_uring"
)

// EngineChoice is the engine that the TAPs of an agent have, and why. The Trial is a zero one if there was none.
type EngineChoice struct {
	Engine Engine
	Reason string
	Trial
}

// worthwhile is the part of a frame's time that io_uring must save: less is within what a trial errs by.
const worthwhile = 0.03

// ChooseEngine makes the rings of that many workers if io_uring works on this kernel and moves frames faster than
// read and write do, or if wanted says so. Rings are nil otherwise, and the reason says why. wanted is an Engine, or
// "" for the faster one. try is TryEngines, or knows what that has said.
func ChooseEngine(wanted Engine, workers int, try func() (Trial, error)) (*Rings, EngineChoice) {
	if wanted == ReadWrite {
		return nil, EngineChoice{Engine: ReadWrite, Reason: "configured"}
	}
	rings, err := OpenRings(workers)
	if err != nil {
		return nil, EngineChoice{Engine: ReadWrite, Reason: err.Error()}
	}
	c := EngineChoice{}
	c.Trial, err = try()
	switch {
	case err != nil:
		c.Engine, c.Reason = ReadWrite, fmt.Sprintf("io_uring failed its test: %v", err)
	case wanted == IOUring:
		c.Engine, c.Reason = IOUring, "configured; it has passed its test"
	case float64(c.IOUring) > (1-worthwhile)*float64(c.ReadWrite):
		c.Engine, c.Reason = ReadWrite, fmt.Sprintf("measured: io_uring saves less than %.0f %% of a frame's time", 100*worthwhile)
	default:
		c.Engine, c.Reason = IOUring, "measured: it is the faster one"
	}
	if c.Engine == ReadWrite {
		_ = rings.Close() // unused memory is all that could stay
		rings = nil
	}
	return rings, c
}
