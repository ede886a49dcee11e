package main

import (
	"maps"
	"sync"
)

// textsMax is how many different texts are told apart.
const textsMax = 50

// texts counts texts.
type texts struct {
	lock  sync.Mutex
	found map[string]int
}

func (all *texts) add(text string) {
	all.lock.Lock()
	defer all.lock.Unlock()
	if all.found == nil {
		all.found = map[string]int{}
	}
	if _, known := all.found[text]; !known && len(all.found) >= textsMax {
		text = "others"
	}
	all.found[text]++
}

func (all *texts) counts() map[string]int {
	all.lock.Lock()
	defer all.lock.Unlock()
	counts := maps.Clone(all.found)
	if counts == nil {
		counts = map[string]int{}
	}
	return counts
}
