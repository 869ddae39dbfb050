package bench

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tapyard/fib"
)

//go:embed dpdk/fib.c
var dpdkSource []byte

// dpdkMemory is what EAL gets, in MiB: the Internet's table takes less than a third of it in rte_fib and rte_lpm, or
// in rte_fib6.
const dpdkMemory = 2048

// dpdk is the child that holds DPDK's tables. Its answers come in the order of the requests.
type dpdk struct {
	*process
	in    *os.File
	out   *bufio.Reader
	end   *os.File // of out
	pages string   // what its memory is made of
	say   func(format string, args ...any)
	stop  func() bool // takes the kill at the context's end back
}

// startDPDK builds the program in dir and starts it on the CPU given. The caller must close it; it is killed when
// ctx ends. An *absentError says why this machine can't have it.
func startDPDK(ctx context.Context, dir string, cpu int, say func(string, ...any)) (*dpdk, error) {
	program, err := buildDPDK(ctx, dir)
	if err != nil {
		return nil, err
	}
	pages, options, err := dpdkPages()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, append(options, "-m", strconv.Itoa(dpdkMemory), "--lcores=0@"+strconv.Itoa(cpu),
		"--no-pci", "--no-telemetry", "--no-shconf", "--file-prefix="+filepath.Base(dir), "--force-max-simd-bitwidth=512")...)
	cmd.Env = append(os.Environ(), "RUNTIME_DIRECTORY="+dir)
	d := &dpdk{pages: pages, say: say}
	in, out, closeTheirs, err := workerPipes(cmd)
	if err != nil {
		return nil, err
	}
	d.process, err = startProcess("dpdk", cmd, "", oneCPU(cpu))
	closeTheirs()
	if err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	d.in, d.out, d.end = in, bufio.NewReader(out), out
	d.stop = context.AfterFunc(ctx, d.kill)
	if _, err := d.answer(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func buildDPDK(ctx context.Context, dir string) (program string, err error) {
	absent := func(why string) error {
		return &absentError{peer: "DPDK", why: why + " (Debian: apt-get install libdpdk-dev pkg-config gcc libc6-dev)"}
	}
	for _, tool := range []string{"cc", "pkg-config"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", absent("its program is compiled here and there is no " + tool + " in PATH")
		}
	}
	flags, err := exec.CommandContext(ctx, "pkg-config", "--cflags", "--libs", "libdpdk").Output()
	if err != nil {
		return "", absent("pkg-config knows no libdpdk")
	}
	source := filepath.Join(dir, "fib.c")
	program = filepath.Join(dir, "fib")
	if err := os.WriteFile(source, dpdkSource, 0o600); err != nil {
		return "", err
	}
	// -march=native comes last: pkg-config names the processor that DPDK itself was compiled for.
	args := slices.Concat([]string{"-O3", "-o", program, source}, strings.Fields(string(flags)), []string{"-march=native"})
	cmd := exec.CommandContext(ctx, "cc", args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir) // cc leaves its temporary files there when it is interrupted
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program for DPDK: %w: %s", err, out)
	}
	return program, nil
}

// dpdkPages chooses huge pages if enough of them are reserved and free.
func dpdkPages() (pages string, options []string, err error) {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "", nil, err
	}
	field := map[string]int{}
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			number, _, _ := strings.Cut(strings.TrimSpace(value), " ")
			field[key], _ = strconv.Atoi(strings.TrimSpace(number))
		}
	}
	size := field["Hugepagesize"] // KiB
	if field["HugePages_Free"]*size >= dpdkMemory<<10 {
		return fmt.Sprintf("huge pages of %d KiB", size), []string{"--in-memory"}, nil
	}
	pages = fmt.Sprintf("pages of %d KiB; with %d MiB of huge ones reserved and free (vm.nr_hugepages) it takes those",
		os.Getpagesize()>>10, dpdkMemory)
	return pages, []string{"--no-huge"}, nil
}

// oneCPU is the set of that CPU alone.
func oneCPU(cpu int) (set unix.CPUSet) {
	set.Set(cpu)
	return set
}

// close ends the child. It may be called again.
func (d *dpdk) close() {
	d.stop()
	d.kill()
	d.in.Close()
	d.end.Close()
}

// ask sends a command, with data behind it, and returns the fields of the answer behind "ok".
func (d *dpdk) ask(command string, data []byte) ([]string, error) {
	_, err := d.in.WriteString(command + "\n")
	if err == nil {
		_, err = d.in.Write(data)
	}
	if err != nil {
		return nil, d.failed(fmt.Errorf("ask it to %s: %w", command, err))
	}
	fields, err := d.answer()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	return fields, nil
}

func (d *dpdk) answer() ([]string, error) {
	for {
		line, err := d.out.ReadString('\n')
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case err != nil:
			return nil, d.failed(fmt.Errorf("it gave no answer: %w", err))
		case kind == "ok":
			return strings.Fields(rest), nil
		case kind == "at":
			d.say("%s", rest)
		case kind == "error":
			return nil, d.failed(errors.New(rest))
		}
	}
}

// load puts the routes of one family into the tables; vector says that there are lookups with AVX-512.
func (d *dpdk) load(f ipFamily, routes []fib.Route) (vector bool, err error) {
	var data []byte
	for _, r := range routes {
		data = appendAddr(data, r.Prefix.Addr())
		data = binary.NativeEndian.AppendUint32(data, uint32(r.Prefix.Bits()))
		data = binary.NativeEndian.AppendUint32(data, uint32(r.NextHop))
	}
	fields, err := d.ask(fmt.Sprintf("load %s %d", f, len(routes)), data)
	return slices.Equal(fields, []string{"avx512"}), err
}

// setKeys makes these the keys of the passes that follow.
func (d *dpdk) setKeys(f ipFamily, addrs []netip.Addr) error {
	var data []byte
	for _, a := range addrs {
		data = appendAddr(data, a)
	}
	_, err := d.ask(fmt.Sprintf("keys %s %d", f, len(addrs)), data)
	return err
}

// appendAddr writes an address as DPDK takes it: IPv4 in host byte order, IPv6 in the network's.
func appendAddr(data []byte, a netip.Addr) []byte {
	if a.Is4() {
		return binary.NativeEndian.AppendUint32(data, number4(a))
	}
	b := a.As16()
	return append(data, b[:]...)
}

// contenders are DPDK's tables of one family.
func (d *dpdk) contenders(f ipFamily, vector, dependent bool) []contender {
	tables := []string{"rte_lpm", "rte_fib"}
	if f == family6 {
		tables = []string{"rte_fib6"}
	}
	var all []contender
	for _, who := range tables {
		if dependent {
			all = append(all, contender{mode: "single", who: who, pass: d.pass("chase." + who)})
			continue
		}
		all = append(all, contender{mode: "single", who: who, pass: d.pass("single." + who)},
			contender{mode: "batch32", who: who, pass: d.pass("batch32." + who)})
	}
	if last := tables[len(tables)-1] + "-avx512"; vector && !dependent {
		all = append(all, contender{mode: "batch32", who: last, pass: d.pass("batch32." + last)})
	}
	return all
}

// pass is that of a contender whose run has this name in the child, which takes its own thread's time.
func (d *dpdk) pass(name string) func(from, to int) (uint64, time.Duration, error) {
	return func(from, to int) (sum uint64, took time.Duration, err error) {
		fields, err := d.ask(fmt.Sprintf("run %s %d %d", name, from, to), nil)
		if err != nil {
			return 0, 0, err
		}
		if _, err := fmt.Sscan(strings.Join(fields, " "), &sum, (*int64)(&took)); err != nil {
			return 0, 0, fmt.Errorf("run %s: answer %q: %w", name, fields, err)
		}
		return sum, took, nil
	}
}
