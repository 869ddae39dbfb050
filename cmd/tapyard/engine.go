package main

import "tapyard/switch/port"

// ioAuto is the value of io that has the faster engine of this machine; the others are names of engines.
const ioAuto = "auto"

// engine is the engine that is asked for, or "" for the faster one.
func (c *config) engine() port.Engine {
	if c.IO == ioAuto {
		return ""
	}
	return port.Engine(c.IO)
}

// chooseEngine decides how TAPs are read and written. It does without io_uring where that isn't to be had: all works
// as well with the other engine.
func (a *agent) chooseEngine() {
	a.rings, a.engine = port.ChooseEngine(a.cfg.engine(), a.cfg.workers(), a.tryEngines)
	say := a.log.Info
	if a.cfg.engine() == port.IOUring && a.rings == nil {
		say = a.log.Warn
	}
	say("TAPs are read and written by "+string(a.engine.Engine), "why", a.engine.Reason,
		"readwrite", a.engine.ReadWrite, "io_uring", a.engine.IOUring) // a frame's time, or 0s if it was not measured
}

// tryEngines compares the engines unless that is known. A failure isn't kept, since it may be due to what is short now.
func (a *agent) tryEngines() (port.Trial, error) {
	if a.proven.Engines != nil {
		return *a.proven.Engines, nil
	}
	result, err := port.TryEngines()
	if err == nil {
		a.proven.Engines = &result
		a.keepProven()
	}
	return result, err
}
