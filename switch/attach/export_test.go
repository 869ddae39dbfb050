package attach

// For switch_test.go, which is a package of its own.

// RealSwitch is what serves attachments in an agent.
type RealSwitch = realSwitch

// SetNewSwitch says how one is made.
func SetNewSwitch(f func(Config) (RealSwitch, error)) { newSwitch = f }
