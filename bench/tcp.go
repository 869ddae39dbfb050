package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

const (
	tcpTime   = 2 * time.Second
	tcpWarmUp = 300 * time.Millisecond
	tcpPort   = 5002
)

var tcpMetrics = []metric{
	{name: "", long: "throughput", unit: "Gb/s"},
	{name: "switch_cpu", long: "switch_cpu_seconds_per_gb", unit: "CPU seconds of the switch per GB", smaller: true},
	{name: "machine_cpu", long: "machine_cpu_seconds_per_gb", unit: "CPU seconds of the machine per GB, both ends included", smaller: true},
}

// TCP measures one stream between two pods on one node.
func TCP(ctx context.Context, cfg Config) (*Report, error) {
	return runBenchmark(ctx, cfg, func(ctx context.Context, s *session) ([]Row, error) {
		return s.sameNode(ctx, cfg.Peers, s.tcp)
	})
}

func (s *session) tcp(ctx context.Context) ([]Row, error) {
	return s.streams(ctx, "tcp.samenode", tcpMetrics)
}

// streams measures the subjects that are up; the metrics are in the order of streamFigures.
func (s *session) streams(ctx context.Context, base string, metrics []metric) ([]Row, error) {
	for _, sub := range s.subjects {
		if _, err := s.stream(ctx, sub, tcpWarmUp); err != nil {
			return nil, fmt.Errorf("%s: warm up %s: %w", base, sub.name(), err)
		}
	}
	return s.interleave(ctx, base, metrics, func(ctx context.Context, sub subject) (values, error) {
		return s.stream(ctx, sub, tcpTime)
	})
}

// stream sends for the time given and returns the values of tcpMetrics, counted at the receiver.
func (s *session) stream(ctx context.Context, sub subject, d time.Duration) (values, error) {
	from, to := sub.pods()
	at := netip.AddrPortFrom(to.addr, tcpPort)
	recv, err := startWorker(ctx, s.exe, verbReceive, streamSpec{Netns: netnsPath(to.netns), At: at}, to.cpus)
	if err != nil {
		return nil, err
	}
	defer recv.abandon()
	snd, err := startWorker(ctx, s.exe, verbSend, streamSpec{Netns: netnsPath(from.netns), At: at, Time: d}, from.cpus)
	if err != nil {
		return nil, err
	}
	defer snd.abandon()
	before, err := readCPU(sub.pids()...)
	if err != nil {
		return nil, err
	}
	var sent, received streamResult
	if err := errors.Join(snd.release(), snd.collect(&sent), recv.collect(&received)); err != nil {
		return nil, err
	}
	after, err := readCPU(sub.pids()...)
	if err != nil {
		return nil, err
	}
	if sent.Bytes != received.Bytes {
		return nil, &imbalance{fmt.Sprintf("sent %d bytes, received %d", sent.Bytes, received.Bytes)}
	}
	cpu, ends := after.since(before), sent.CPU+received.CPU
	s.sayDisturbed("tcp", sub, cpu.others(ends), sent.Took)
	return streamFigures(received, cpu, cpu.machineSeconds(ends, sent.Took)), nil
}

// streamFigures takes the CPU time of the machine in seconds.
func streamFigures(r streamResult, cpu cpuUse, machine float64) values {
	gigabytes := float64(r.Bytes) / 1e9
	return values{8 * gigabytes / r.Took.Seconds(), cpu.switchSeconds() / gigabytes, machine / gigabytes}
}
