// Package bench measures the switch beside other ways to join pods on one machine, and builds the
// topologies for it out of network namespaces. Everything that sends, forwards or receives is a process
// of its own, so that its CPU time is known; the subjects are measured in turn, A B A B, in one run; and
// a run whose frames don't balance gives no number. The lab, several nodes with pods on one machine,
// lives here too. The reports in results/ are those of the README, and of the switch before it was made fast.
package bench
