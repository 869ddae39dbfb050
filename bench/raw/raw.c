/*
 * raw: two TAP devices joined by read and write, the least that a userspace switch can do.
 *
 * It is the baseline that `tapyard bench` measures the switch against, so it is honest: the same offloads
 * as the switch, non-blocking descriptors drained to EAGAIN, ppoll only when both sides are empty; no
 * lookup, no check, no counter. A frame that the kernel refuses is gone, and the benchmark's accounting
 * notices.
 *
 * Usage: raw NETNS_PATH DEVICE NETNS_PATH DEVICE
 * It makes the devices in those network namespaces, prints "ready" and forwards until it is killed; the
 * devices go with it. Who starts it sets their addresses, MTU and queue length.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/if.h>
#include <linux/if_tun.h>

/* Since kernel 6.2; older headers lack them. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

/* The largest super-frame: virtio-net header, Ethernet header, 64 KiB of packet. */
enum { FRAME_MAX = 10 + 14 + 65536 };

static void die(const char *doing, const char *what)
{
	fprintf(stderr, "raw: %s %s: %s\n", doing, what, strerror(errno));
	exit(1);
}

static void enter(const char *netns)
{
	int fd = open(netns, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("open", netns);
	if (setns(fd, CLONE_NEWNET))
		die("enter", netns);
	close(fd);
}

/* The same offloads as the switch asks for: all, or without USO on a kernel that lacks it. */
static void set_offloads(int fd, const char *device)
{
	unsigned tso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;

	if (ioctl(fd, TUNSETOFFLOAD, tso | TUN_F_USO4 | TUN_F_USO6) && ioctl(fd, TUNSETOFFLOAD, tso))
		die("set offloads of", device);
}

static int open_tap(const char *netns, const char *device)
{
	struct ifreq req = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };

	if (strlen(device) >= sizeof req.ifr_name) {
		errno = ENAMETOOLONG;
		die("make", device);
	}
	strcpy(req.ifr_name, device);
	enter(netns);
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		die("open", "/dev/net/tun");
	if (ioctl(fd, TUNSETIFF, &req))
		die("make", device);
	set_offloads(fd, device);
	return fd;
}

/* Forwards what waits in from, until it is empty; returns whether there was anything. */
static int drain(int from, int to)
{
	static char frame[FRAME_MAX];
	int any = 0;

	for (;;) {
		ssize_t n = read(from, frame, sizeof frame);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			if (errno == EAGAIN)
				return any;
			die("read", "a TAP device");
		}
		any = 1;
		if (write(to, frame, n) < 0)
			continue;
	}
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: raw NETNS_PATH DEVICE NETNS_PATH DEVICE\n");
		return 2;
	}
	int a = open_tap(argv[1], argv[2]);
	int b = open_tap(argv[3], argv[4]);
	struct pollfd both[2] = { { .fd = a, .events = POLLIN }, { .fd = b, .events = POLLIN } };

	puts("ready");
	fflush(stdout);
	for (;;) {
		int any = drain(a, b);
		any |= drain(b, a);
		if (!any && ppoll(both, 2, NULL, NULL) < 0 && errno != EINTR)
			die("wait for", "the TAP devices");
	}
}
