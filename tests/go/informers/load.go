package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
)

// requestTimeout is what a request of the load may take.
const requestTimeout = 20 * time.Second

// loadReport is what became of the load.
type loadReport struct {
	Sent     int64 `json:"sent"`
	Answered int64 `json:"answered"`
	// Failures are the requests that were not answered with 200 and a whole body.
	Failures map[string]int `json:"failures"`
	// SlowestMs is the longest that a request took, since the line before.
	SlowestMs int64 `json:"slowestMs"`
}

// load asks at a steady rate, however long the answers take, and never asks twice.
type load struct {
	client         *http.Client
	server         string
	sent, answered atomic.Int64
	slowestMs      atomic.Int64
	failures       texts
	requests       sync.WaitGroup
}

func startLoad(ctx context.Context, config *rest.Config, rate float64, targets []string) (*load, error) {
	own := rest.CopyConfig(config)
	own.Dial = (&net.Dialer{}).DialContext
	client, err := rest.HTTPClientFor(own)
	if err != nil {
		return nil, err
	}
	asker := &load{client: client, server: strings.TrimSuffix(config.Host, "/")}
	if rate > 0 {
		if len(targets) == 0 {
			return nil, errors.New("-rate needs -get")
		}
		asker.requests.Go(func() { asker.run(ctx, rate, targets) })
	}
	return asker, nil
}

func (asker *load) run(ctx context.Context, rate float64, targets []string) {
	ticker := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer ticker.Stop()
	begun := time.Now()
	for sent := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		// A ticker leaves out what comes too late.
		for ; float64(sent) < time.Since(begun).Seconds()*rate; sent++ {
			target := targets[sent%len(targets)]
			asker.requests.Go(func() { asker.ask(target) })
		}
	}
}

// wait ends when all requests have.
func (asker *load) wait() { asker.requests.Wait() }

func (asker *load) report() loadReport {
	return loadReport{
		Sent:      asker.sent.Load(),
		Answered:  asker.answered.Load(),
		Failures:  asker.failures.counts(),
		SlowestMs: asker.slowestMs.Swap(0),
	}
}

func (asker *load) ask(target string) {
	asker.sent.Add(1)
	begun := time.Now()
	if err := asker.get(target); err != nil {
		asker.failures.add(err.Error())
	} else {
		asker.answered.Add(1)
	}
	took := time.Since(begun).Milliseconds()
	for {
		slowest := asker.slowestMs.Load()
		if took <= slowest || asker.slowestMs.CompareAndSwap(slowest, took) {
			return
		}
	}
}

func (asker *load) get(target string) error {
	tries := 0
	// Not by run's context: a request that was begun is to be answered.
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { tries++ },
	})
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, asker.server+target, nil)
	if err != nil {
		return err
	}
	response, err := asker.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return fmt.Errorf("%s: the body broke off: %w", target, err)
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s: %s", target, response.Status, body)
	case tries != 1:
		// Go's client repeats what a server has certainly not begun with. That is no failure, but not this server's merit.
		return fmt.Errorf("%s: it took %d connections", target, tries)
	}
	return nil
}
