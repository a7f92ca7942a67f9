package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

const (
	kindRemote = "remote"
	kindCPU    = "cpu"
	mebi       = 1 << 20

	fingerprintEvery = 20 * time.Second
	lookTime         = 3 * time.Second // per program or server queried
	maxDevices       = 64
)

// Fingerprint reports the devices at once and then periodically.
func (b *backend) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	return worker.Look(ctx, fingerprintEvery, b.fingerprint, emit)
}

func (b *backend) fingerprint(ctx context.Context) worker.Fingerprint {
	s := b.config()
	if !s.configured() {
		return worker.Fingerprint{Problem: `No server is named. Give the worker block a preset, a command or a url: "rbee plugin schema worker/openai" explains them.`}
	}
	if s.adopts() {
		var hosts []string
		for _, t := range s.targets {
			hosts = append(hosts, t.URL.Host)
		}
		names := listed(ctx, s)
		return worker.Fingerprint{
			Devices: []worker.Device{{ID: kindRemote, Kind: kindRemote, Name: strings.Join(hosts, ", ")}}, ByName: true, Models: names,
		}
	}
	f := worker.Fingerprint{Devices: cards(ctx), ByName: s.byName(), Models: s.Models, Formats: s.Formats}
	if program := s.template()[0]; program != "" {
		if _, err := exec.LookPath(program); err != nil {
			f.Problem = "The server's program cannot be started: " + err.Error() + ". Install it, or name its path as program."
		}
	}
	if len(f.Devices) == 0 || slices.Contains(s.Devices, kindCPU) {
		f.Devices = append(f.Devices, processor())
	}
	if len(s.Devices) > 0 {
		f.Devices = chosen(f.Devices, s.Devices)
	}
	return f
}

// chosen returns the devices named by ids, with unknown memory for those not found.
func chosen(found []worker.Device, ids []string) []worker.Device {
	var out []worker.Device
	for _, id := range ids {
		i := slices.IndexFunc(found, func(d worker.Device) bool { return d.ID == id })
		if i < 0 {
			kind, _, _ := strings.Cut(id, ":")
			out = append(out, worker.Device{ID: id, Kind: kind, Name: id})
			continue
		}
		out = append(out, found[i])
	}
	return out
}

// cards queries nvidia-smi; nil if it is missing.
func cards(ctx context.Context) []worker.Device {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nvidia-smi", "--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil
	}
	return parseCards(out)
}

func parseCards(out []byte) []worker.Device {
	r := csv.NewReader(bytes.NewReader(out))
	r.TrimLeadingSpace = true
	r.LazyQuotes = true
	rows, err := r.ReadAll()
	if err != nil {
		return nil
	}
	var devices []worker.Device
	for _, row := range rows[:min(len(rows), maxDevices)] {
		if len(row) != 4 {
			continue
		}
		if _, err := strconv.ParseUint(row[0], 10, 16); err != nil {
			continue
		}
		total, err1 := strconv.ParseInt(row[2], 10, 32)
		free, err2 := strconv.ParseInt(row[3], 10, 32)
		if err1 != nil || err2 != nil || total < 0 || free < 0 || free > total { // [N/A]: the card shares the machine's memory
			total, free = 0, 0
		}
		devices = append(devices, worker.Device{ID: "cuda:" + row[0], Kind: "cuda", Name: row[1], TotalBytes: total * mebi, FreeBytes: free * mebi})
	}
	return devices
}

// processor describes the CPU, with the machine's memory if Linux reports it.
func processor() worker.Device {
	d := worker.Device{ID: kindCPU, Kind: kindCPU, Name: "CPU"}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return d
	}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		kilo, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "MemTotal":
			d.TotalBytes = kilo << 10
		case "MemAvailable":
			d.FreeBytes = kilo << 10
		}
	}
	return d
}
