package agent

import (
	"context"
	"os"
	"time"

	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/queen"
)

// registryPatience bounds how long readiness is delayed while a queen that forms a cluster, or has
// just joined one, lacks a registry in which to look tokens up.
const registryPatience = 10 * time.Second

// ready reports that the agent serves: in agent.json, to the service manager and to Options.Ready.
func (p *process) ready(ctx context.Context) error {
	record := Record{PID: os.Getpid(), Version: p.opts.Version, StartedAt: p.started}
	if p.listener != nil {
		record.HTTPAddress, record.Scheme = p.listener.Addr().String(), "http"
	}
	if p.net == nil {
		if err := awaitReady(ctx, p.queen, p.bees); err != nil {
			return err
		}
	} else {
		record.RPCAddress = p.net.identity.RPCAddress()
		if p.listener != nil {
			record.Scheme = "https"
		}
		if err := p.awaitRegistry(ctx); err != nil {
			return err
		}
	}
	if err := writeRecord(p.cfg.DataDir, record); err != nil {
		return err
	}
	p.log.Info("ready", "address", record.HTTPAddress, "data", p.cfg.DataDir, "took", time.Since(p.started).Round(time.Millisecond))
	if p.opts.Ready != nil {
		p.opts.Ready(record.HTTPAddress)
	}
	if err := notify(ctx, p.opts.NotifySocket, "READY=1"); err != nil {
		p.log.Warn("failed to notify the service manager", "error", err)
	}
	<-ctx.Done()
	record.Stopping = true
	if err := writeRecord(p.cfg.DataDir, record); err != nil {
		p.log.Warn("failed to record that the agent stops", "error", err)
	}
	// The manager may have exited, or the machine may be shutting down.
	_ = notify(context.WithoutCancel(ctx), p.opts.NotifySocket, "STOPPING=1")
	return ctx.Err()
}

func (p *process) awaitRegistry(ctx context.Context) error {
	if p.queen == nil {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, registryPatience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := p.queen.Registry.Cluster(); err == nil || limited.Err() != nil {
			return ctx.Err()
		}
		select {
		case <-tick.C:
		case <-limited.Done():
		}
	}
}

// awaitReady waits until the queen knows the hive and can serve.
func awaitReady(ctx context.Context, q *queen.Queen, h *hive.Hive) error {
	select {
	case <-h.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for q.Ready(ctx) != nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
