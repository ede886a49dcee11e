//! Shows results as tables: for a terminal, and as the section of BENCHMARKS.md.

use anyhow::{Result, ensure};

use super::goals::{self, Goal};
use super::measure::Measured;
use super::options::{Part, Side};
use super::results::{BulkTurn, CreationTurn, Results, Spread};
use super::workloads::Workload;
use crate::document::{Section, Table, grouped, median, number};

const SECTION: Section = Section {
    begin: "<!-- bench-zoo: begin; written by the benchmark, do not edit -->",
    end: "<!-- bench-zoo: end -->",
};

/// The results as text.
pub fn text(results: &Results) -> String {
    let mut text = preface(results);
    let has = |part: Part| results.options.wants(part);
    let mut add = |is_wanted: bool, heading: &str, table: Table| {
        if is_wanted {
            text += &format!("\n{heading}:\n\n{}", table.text());
        }
    };
    let has_turns = !results.turns.is_empty();
    add(
        has_turns,
        "Processor time in µs for each request or event. `kube-apiserver` and `client` are what the two ends took with KubeZoo between them, \
         `directly` is what kube-apiserver took without",
        cpu_table(results),
    );
    add(
        has_turns,
        "Latency in ms, of requests that follow each other, and from a write to each watch that tells it. `added` are medians of the \
         differences of each round",
        latency_table(results),
    );
    add(has(Part::Watch), "Watches at the kube-apiserver, for those that all tenants have", watch_table(results));
    add(
        has(Part::Creation),
        "New tenants, in ms: `object` until its object is made at the kube-apiserver, `credential` from then until KubeZoo has signed a \
         certificate of a new key, `first write` from then until an object is made with it in `default`, over a new connection",
        creation_table(results),
    );
    add(
        has(Part::Creation),
        "New tenants as fast as they can be made, until the four namespaces of all of them are there; processor time in ms of each",
        bulk_table(results),
    );
    add(
        has(Part::Memory),
        "Idle tenants, memory in MiB: resident, the share of it that is KubeZoo's own, and what of it no file stands behind; what tenants add \
         to what is resident, in all three programs; and the time in s from a start until KubeZoo is ready, and until it knows all tenants",
        memory_table(results),
    );
    text
}

/// The document with the section of this benchmark replaced, or added at its end.
///
/// # Errors
/// When the section's end is missing, or the results are of no full run.
pub fn put_into(document: &str, results: &Results) -> Result<String> {
    ensure!(!results.options.quick, "the results are of a quick run; documents tell those of a full one");
    ensure!(results.options.only.is_empty(), "the results are of a part of a run");
    SECTION.put_into(document, &text(results))
}

fn preface(results: &Results) -> String {
    let (machine, options) = (&results.machine, &results.options);
    let mut text = format!("## KubeZoo and a kube-apiserver directly\n\n`{}`, {}.\n\n", results.command, results.date);
    text += &format!("- KubeZoo: {}\n- kube-apiserver: {}, on KubeBrain\n", results.version, results.kubernetes);
    text += &format!(
        "- Machine: {}, {} cores, {:.0} GiB, Linux {}, {}; all programs share all cores\n",
        machine.processor, machine.cores, machine.memory_gib, machine.kernel, machine.file_system,
    );
    text += "- Both sides ask the same kube-apiserver, over TLS 1.3 with client certificates and HTTP/2, without gzip, which KubeZoo does not do. \
             KubeZoo authenticates, authorizes, and rewrites names both ways.\n";
    if results.object_bytes > 0 {
        text += &format!(
            "- Objects are ConfigMaps of {} bytes in JSON. A list has {} ({} bytes), with `-A` in {} namespaces, where the direct side \
             asks by a label, because the cluster has the tenants' objects too.\n",
            grouped(results.object_bytes as u64),
            grouped(options.objects as u64),
            grouped(results.list_bytes as u64),
            options.namespaces,
        );
    }
    text += "- `by hand`: a namespace, a binding and a first object of a new user, made at the kube-apiserver itself. New tenants can't be faster than \
             that where the kube-apiserver takes all cores.\n";
    text += &format!(
        "- One request at a time, `at once` {} over {} connections. {} tenants have {} equal watches each of an object that is written \
         at the kube-apiserver, {} writes at a time. Both sides ran in turn, {} rounds ({} of new tenants); numbers are medians.\n- A `bound` \
         must hold; a `goal` is what is aimed at.\n",
        options.in_flight,
        options.connections,
        options.watching_tenants,
        options.watches,
        options.writers,
        options.rounds,
        options.creation_rounds,
    );
    text
}

fn cpu_table(results: &Results) -> Table {
    let head = ["", "KubeZoo", "bound", "goal", "", "kube-apiserver", "directly", "client"];
    let mut table = Table::new(head);
    for workload in Workload::ALL {
        let of = |side, value: fn(&Measured) -> f64| results.of(side, workload, value);
        let Some(zoo) = of(Side::Zoo, Measured::zoo_cpu_us) else { continue };
        let [bound, goal, met] = verdict(Some(zoo), goals::cpu_us(workload));
        table.row([
            workload.label().to_owned(),
            number(Some(zoo)),
            bound,
            goal,
            met,
            number(of(Side::Zoo, Measured::apiserver_cpu_us)),
            number(of(Side::Direct, Measured::apiserver_cpu_us)),
            number(of(Side::Zoo, Measured::client_cpu_us)),
        ]);
    }
    table
}

fn latency_table(results: &Results) -> Table {
    let head = [
        "",
        "direct p50",
        "p99",
        "a second",
        "KubeZoo p50",
        "p99",
        "a second",
        "added p50",
        "added p99",
        "bound for p50",
        "goal",
        "",
    ];
    let mut table = Table::new(head);
    for workload in Workload::ALL {
        let of = |side, value: fn(&Measured) -> f64| results.of(side, workload, value);
        if of(Side::Zoo, Measured::rate).is_none() {
            continue;
        }
        let added = results.added(workload, Measured::p50_ms);
        let [bound, goal, met] = verdict(added, goals::added_p50_ms(workload));
        let ms = |side, value| milliseconds(of(side, value));
        let rate = |side| of(side, Measured::rate).map_or_else(String::new, |rate| grouped(rate.round() as u64));
        table.row([
            workload.label().to_owned(),
            ms(Side::Direct, Measured::p50_ms),
            ms(Side::Direct, Measured::p99_ms),
            rate(Side::Direct),
            ms(Side::Zoo, Measured::p50_ms),
            ms(Side::Zoo, Measured::p99_ms),
            rate(Side::Zoo),
            milliseconds(added),
            milliseconds(results.added(workload, Measured::p99_ms)),
            bound,
            goal,
            met,
        ]);
    }
    table
}

fn watch_table(results: &Results) -> Table {
    let head = ["", "kinds", "tenants' watches", "kube-apiserver's", "shared, as KubeZoo counts", "goal", ""];
    let mut table = Table::new(head);
    for count in &results.watches {
        let [goal, met] = at_most(Some(count.upstream), count.kinds as f64);
        table.row([
            if count.is_for_all { "watches -A" } else { "watches of a namespace" }.to_owned(),
            count.kinds.to_string(),
            grouped(count.watches as u64),
            format!("{:.0}", count.upstream),
            format!("{:.0}", count.shared),
            goal,
            met,
        ]);
    }
    table
}

fn creation_table(results: &Results) -> Table {
    let head = ["", "", "object", "credential", "first write", "whole", "by hand", "bound", "goal", ""];
    let mut table = Table::new(head);
    let options = &results.options;
    for (label, at_once, is_goal) in [
        ("one after the other".to_owned(), 1, false),
        (format!("{} at once", options.parallel), options.parallel, true),
    ] {
        for (name, value) in [("p50", (|spread| spread.p50_ms) as fn(&Spread) -> f64), ("p99", |spread| spread.p99_ms)]
        {
            let of = |part: fn(&CreationTurn) -> &Spread| results.creation(at_once, |turn| value(part(turn)));
            let whole = of(|turn| &turn.whole);
            let [bound, goal, met] = verdict(whole, (is_goal && name == "p99").then_some(goals::USABLE_P99_MS));
            table.row([
                label.clone(),
                name.to_owned(),
                number(of(|turn| &turn.made)),
                number(of(|turn| &turn.credential)),
                number(of(|turn| &turn.first)),
                number(whole),
                number(results.by_hand(at_once, |turn| value(&turn.whole))),
                bound,
                goal,
                met,
            ]);
        }
    }
    table
}

fn bulk_table(results: &Results) -> Table {
    let mut table = Table::new(["", "a second", "goal", "", "KubeZoo", "kube-apiserver", "KubeBrain", "client"]);
    let of = |value: fn(&BulkTurn) -> f64| median(results.bulk.iter().map(value).collect());
    let rate = of(BulkTurn::rate);
    let met = rate.map_or("", |rate| if rate >= goals::BULK_RATE_MIN { "met" } else { "**not met**" });
    let each = |value: f64, turn: &BulkTurn| value * 1e3 / turn.tenants as f64;
    let cpu =
        |value: fn(&BulkTurn) -> f64| number(median(results.bulk.iter().map(|turn| each(value(turn), turn)).collect()));
    table.row([
        format!("{} tenants", grouped(results.options.bulk as u64)),
        number(rate),
        format!("≥ {}", goals::BULK_RATE_MIN),
        met.to_owned(),
        cpu(|turn| turn.cpu_seconds.zoo),
        cpu(|turn| turn.cpu_seconds.apiserver),
        cpu(|turn| turn.cpu_seconds.store),
        cpu(|turn| turn.cpu_seconds.client),
    ]);
    table
}

fn memory_table(results: &Results) -> Table {
    let head = [
        "",
        "resident",
        "own share",
        "anonymous",
        "added",
        "goal",
        "",
        "kube-apiserver: added",
        "KubeBrain: added",
        "ready",
        "all known",
    ];
    let mut table = Table::new(head);
    let Some(empty) = results.memory.first() else { return table };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for idle in &results.memory {
        let added = |bytes: u64, before: u64| (idle.tenants > 0).then(|| mib(bytes) - mib(before));
        let of_zoo = added(idle.resident_bytes, empty.resident_bytes);
        let [goal, met] = match of_zoo {
            Some(_) => goals::added_mib(idle.tenants).map(|goal| at_most(of_zoo, goal)).unwrap_or_default(),
            None => at_most(Some(mib(idle.resident_bytes)), goals::EMPTY_MIB),
        };
        let label = match (idle.tenants, idle.start.is_some()) {
            (0, _) => "no tenant".to_owned(),
            (tenants, false) => format!("{} tenants", grouped(tenants as u64)),
            (tenants, true) => format!("{} tenants, started anew", grouped(tenants as u64)),
        };
        let seconds = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
        table.row([
            label,
            number(Some(mib(idle.resident_bytes))),
            number(Some(mib(idle.proportional_bytes))),
            number(Some(mib(idle.anonymous_bytes))),
            number(of_zoo),
            goal,
            met,
            number(added(idle.apiserver_resident_bytes, empty.apiserver_resident_bytes)),
            number(added(idle.store_resident_bytes, empty.store_resident_bytes)),
            seconds(idle.start.map(|start| start.ready_seconds)),
            seconds(idle.start.map(|start| start.known_seconds)),
        ]);
    }
    table
}

/// The bound, the goal, and which of them holds.
fn verdict(value: Option<f64>, goal: Option<Goal>) -> [String; 3] {
    let Some(Goal { bound, goal }) = goal else { return Default::default() };
    let met = match value {
        None => "",
        Some(value) if value <= goal => "met",
        Some(value) if value <= bound => "within the bound",
        Some(_) => "**not met**",
    };
    [format!("≤ {}", limit(bound)), format!("≤ {}", limit(goal)), met.to_owned()]
}

/// The goal, and whether it is met.
fn at_most(value: Option<f64>, goal: f64) -> [String; 2] {
    let met = value.map_or("", |value| if value <= goal { "met" } else { "**not met**" });
    [format!("≤ {}", limit(goal)), met.to_owned()]
}

fn limit(value: f64) -> String {
    if value >= 1000.0 { grouped(value as u64) } else { value.to_string() }
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.3}"))
}

/// One line for a turn that has just run.
pub fn progress(side: Side, workload: Workload, measured: &Measured) -> String {
    format!(
        "  {:<28}{:<8}{:>9} µs of CPU each (kube-apiserver {}, client {}), {} a second, p50 {} p99 {} ms",
        workload.label(),
        side.label(),
        number(Some(measured.zoo_cpu_us())),
        number(Some(measured.apiserver_cpu_us())),
        number(Some(measured.client_cpu_us())),
        number(Some(measured.rate())),
        milliseconds(Some(measured.p50_ms())),
        milliseconds(Some(measured.p99_ms())),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::machine::Machine;
    use crate::program::Results as _;
    use crate::zoo::measure::Cpu;
    use crate::zoo::options::Options;
    use crate::zoo::results::{Idle, Turn};

    /// A turn in which an operation took KubeZoo that long, and half of the latencies were at most so long, in microseconds.
    fn turn(side: Side, round: u32, workload: Workload, cpu_us: f64, p50_us: f64) -> Turn {
        let cpu_seconds = Cpu { zoo: cpu_us / 1e3, apiserver: 0.4, store: 0.01, client: 0.01 };
        let measured =
            Measured { operations: 1000, wall_seconds: 1.0, cpu_seconds, p50_us, p99_us: p50_us * 2.0, max_us: p50_us };
        Turn { side, round, workload, measured }
    }

    fn idle(tenants: usize, mib: u64) -> Idle {
        Idle {
            tenants,
            start: None,
            resident_bytes: mib << 20,
            resident_peak_bytes: mib << 20,
            anonymous_bytes: mib << 20,
            proportional_bytes: mib << 20,
            apiserver_resident_bytes: 1 << 30,
            store_resident_bytes: 1 << 30,
        }
    }

    fn results(turns: Vec<Turn>) -> Results {
        Results {
            date: "2026-01-01".to_owned(),
            command: "make bench-zoo".to_owned(),
            machine: Machine::example(),
            version: "kubewharf 0.1".to_owned(),
            kubernetes: "v1.36".to_owned(),
            options: Options::parse_from(["bench-zoo"]),
            object_bytes: 1000,
            list_bytes: 1_100_000,
            turns,
            watches: Vec::new(),
            creation: Vec::new(),
            by_hand: Vec::new(),
            bulk: Vec::new(),
            memory: vec![idle(0, 40), idle(10_000, 141)],
        }
    }

    fn line<'a>(text: &'a str, start: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no line {start:?} in\n{text}"))
    }

    #[test]
    fn each_goal_and_bound_holds_at_its_value_and_not_above() {
        let of = |cpu_us| text(&results(vec![turn(Side::Zoo, 0, Workload::GetJson, cpu_us, 1.0)]));
        assert!(line(&of(100.0), "| GET, JSON").contains(" met "));
        assert!(line(&of(100.1), "| GET, JSON").contains("within the bound"));
        assert!(line(&of(150.1), "| GET, JSON").contains("**not met**"));
        let text = text(&results(Vec::new()));
        assert!(line(&text, "| no tenant").contains(" met "), "{text}");
        assert!(line(&text, "| 10,000 tenants").contains("**not met**"), "{text}");
    }

    #[test]
    fn added_latency_is_that_of_one_round_so_a_slow_round_changes_it_little() {
        let of_round = |round, p50_us: f64| {
            [(Side::Direct, p50_us), (Side::Zoo, p50_us + 250.0)]
                .map(|(side, p50_us)| turn(side, round, Workload::GetJson, 1.0, p50_us))
        };
        let results = results([of_round(0, 100.0), of_round(1, 9000.0), of_round(2, 120.0)].concat());
        let added = results.added(Workload::GetJson, Measured::p50_ms);
        assert!(added.is_some_and(|added| (added - 0.25).abs() < 1e-9), "{added:?}");
        assert_eq!(results.added(Workload::Create, Measured::p50_ms), None);
    }

    #[test]
    fn only_a_full_run_gets_into_the_document_and_json_keeps_all_of_it() {
        let mut results = results(vec![turn(Side::Zoo, 0, Workload::Watch, 5.0, 5.0)]);
        let document = results.put_into("# Benchmarks\n").unwrap();
        assert!(document.contains("KubeZoo") && document.ends_with(&format!("{}\n", SECTION.end)), "{document}");
        assert_eq!(results.put_into(&document).unwrap(), document);
        let json = results.to_json().unwrap();
        assert_eq!(Results::from_json(&json).unwrap().to_json().unwrap(), json);
        results.options.quick = true;
        assert!(results.put_into("").is_err());
    }
}
