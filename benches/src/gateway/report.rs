//! Shows results as tables: for a terminal, and as the section of BENCHMARKS.md.

use anyhow::{Result, ensure};

use super::goals;
use super::measure::Measured;
use super::options::Side;
use super::results::Results;
use super::workloads::Workload;
use crate::document::{Section, Table, grouped, number};

const SECTION: Section = Section {
    begin: "<!-- bench-gateway: begin; written by the benchmark, do not edit -->",
    end: "<!-- bench-gateway: end -->",
};

/// The results as text.
pub fn text(results: &Results) -> String {
    let mut text = preface(results);
    text += "\nProcessor time in µs for each request or event. `kube-apiserver` and `client` are what the two ends took with KubeGateway between \
             them. Ratios and differences are medians of those of each round:\n\n";
    text += &cpu_table(results).text();
    text += "\nLatency in ms, of requests that begin at a steady rate whatever became of those before, and of a write until the last watcher \
             has heard of it:\n\n";
    text += &latency_table(results).text();
    text += "\nResident memory of a fresh process in KiB:\n\n";
    text += &memory_table(results).text();
    text += "\nTCP connections to the kube-apiserver:\n\n";
    text += &clients_table(results).text();
    text
}

/// The document with the section of this benchmark replaced, or added at its end.
///
/// # Errors
/// When the section's end is missing, or the results are of no full run.
pub fn put_into(document: &str, results: &Results) -> Result<String> {
    ensure!(!results.options.quick, "the results are of a quick run; documents tell those of a full one");
    ensure!(results.options.side.is_none() && results.options.only.is_empty(), "the results are of a part of a run");
    SECTION.put_into(document, &text(results))
}

fn preface(results: &Results) -> String {
    let (machine, options) = (&results.machine, &results.options);
    let mut text = format!("## KubeGateway and HAProxy\n\n`{}`, {}.\n\n", results.command, results.date);
    for (side, version) in &results.versions {
        text += &format!("- {}: {version}\n", side.label());
    }
    text += &format!(
        "- Machine: {}, {} cores, {:.0} GiB, Linux {}\n",
        machine.processor, machine.cores, machine.memory_gib, machine.kernel,
    );
    text += &format!(
        "- Each proxy has one thread on a core of its own; clients and kube-apiserver have {}. TLS 1.3 with AES-128-GCM and client \
         certificates, HTTP/2 on both sides, no access log. KubeGateway authenticates, looks through rules and limits, and impersonates; \
         HAProxy checks the certificate and passes its name on.\n- The kube-apiserver is a small one of the benchmark's own, but in the \
         rows that say otherwise. {} requests in flight over {} connections, lists two at a time; {} watchers. All sides ran in turn, {} \
         rounds; numbers are medians.\n",
        if machine.cores > 2 { "others" } else { "the other" },
        options.in_flight,
        options.connections,
        grouped(options.watchers as u64),
        options.rounds,
    );
    text
}

fn cpu_table(results: &Results) -> Table {
    let mut table = Table::new(["", "HAProxy", "KubeGateway", "ratio", "goal", "", "kube-apiserver", "client"]);
    for workload in Workload::CPU.into_iter().chain(Workload::STEADY).chain([Workload::FanOut, Workload::Apiserver]) {
        if !results.has(workload) {
            continue;
        }
        let ratio =
            results.paired(Side::Haproxy, workload, Measured::proxy_cpu_us, |own, other| own / other, Side::Gateway);
        let [goal, met] = verdict(ratio, goals::cpu_ratio_max(workload));
        let [haproxy, gateway] = Side::PROXIES.map(|side| number(results.of(side, workload, Measured::proxy_cpu_us)));
        let label = match workload {
            Workload::List => format!("LIST, {} MB", number(Some(results.options.list_bytes as f64 / 1e6))),
            workload => workload.label().to_owned(),
        };
        let of_gateway = |value: fn(&Measured) -> f64| number(results.of(Side::Gateway, workload, value));
        let (backend, client) = (of_gateway(Measured::backend_cpu_us), of_gateway(Measured::client_cpu_us));
        table.row([label, haproxy, gateway, ratio_text(ratio), goal, met, backend, client]);
    }
    table
}

fn latency_table(results: &Results) -> Table {
    let head = ["", "", "rate", "core of the proxy", "p50", "p99", "added p50", "added p99", "goal for p50", ""];
    let mut table = Table::new(head);
    let ms = |us: Option<f64>| us.map(|us| us / 1e3);
    for workload in Workload::STEADY.into_iter().chain([Workload::FanOut]) {
        for side in Side::ALL {
            let of = |value: fn(&Measured) -> f64| results.of(side, workload, value);
            let Some(rate) = of(Measured::rate) else { continue };
            let added = |value: fn(&Measured) -> f64| {
                let other = (side != Side::Direct).then_some(Side::Direct)?;
                ms(results.paired(other, workload, value, |own, other| own - other, side))
            };
            let goal =
                (workload == Workload::SteadyGetSmall && side == Side::Gateway).then_some(goals::ADDED_P50_MS_MAX);
            let (p50, p99) = (added(|measured| measured.p50_us), added(|measured| measured.p99_us));
            let [goal, met] = verdict(p50, goal);
            table.row([
                workload.label().to_owned(),
                side.label().to_owned(),
                grouped(rate.round() as u64),
                of(Measured::proxy_load)
                    .filter(|load| *load > 0.0)
                    .map_or_else(String::new, |load| format!("{:.0} %", load * 100.0)),
                milliseconds(ms(of(|measured| measured.p50_us))),
                milliseconds(ms(of(|measured| measured.p99_us))),
                milliseconds(p50),
                milliseconds(p99),
                goal,
                met,
            ]);
        }
    }
    table
}

fn memory_table(results: &Results) -> Table {
    let mut table = Table::new(["", "of", "HAProxy", "KubeGateway", "goal", ""]);
    for workload in [Workload::IdleConnections, Workload::IdleWatches] {
        let Some(turn) = results.memory.iter().find(|turn| turn.workload == workload) else { continue };
        let [haproxy, gateway] = Side::PROXIES.map(|side| results.kib_each(side, workload));
        let [goal, met] = verdict(gateway, goals::kib_max(workload));
        let label = match workload {
            Workload::IdleWatches => {
                format!("{}, {} a connection", workload.label(), results.options.watches_per_connection)
            }
            workload => workload.label().to_owned(),
        };
        table.row([label, grouped(turn.count as u64), number(haproxy), number(gateway), goal, met]);
    }
    table
}

fn clients_table(results: &Results) -> Table {
    let mut table = Table::new(["clients, with a request each at once", "", "connections", "goal", ""]);
    for turn in &results.clients {
        let goal = (turn.side == Side::Gateway).then(|| goals::connections_max(turn.clients));
        let [goal, met] = verdict(Some(turn.backend_connections as f64), goal.map(|goal| goal as f64));
        let connections = grouped(turn.backend_connections);
        table.row([grouped(turn.clients as u64), turn.side.label().to_owned(), connections, goal, met]);
    }
    table
}

/// The goal, and whether it is met.
fn verdict(value: Option<f64>, goal: Option<f64>) -> [String; 2] {
    let met = value.zip(goal).map(|(value, goal)| if value <= goal { "met" } else { "**not met**" });
    [goal.map(|goal| format!("≤ {goal}")).unwrap_or_default(), met.unwrap_or("").to_owned()]
}

fn ratio_text(ratio: Option<f64>) -> String {
    ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"))
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.3}"))
}

/// One line for a turn that has just run.
pub fn progress(side: Side, workload: Workload, measured: &Measured) -> String {
    format!(
        "  {:<26}{:<12}{:>9} µs of CPU each (kube-apiserver {}, client {}), {} a second, p50 {} p99 {} ms",
        workload.label(),
        side.label(),
        number(Some(measured.proxy_cpu_us())),
        number(Some(measured.backend_cpu_us())),
        number(Some(measured.client_cpu_us())),
        grouped(measured.rate().round() as u64),
        milliseconds(Some(measured.p50_us / 1e3)),
        milliseconds(Some(measured.p99_us / 1e3)),
    )
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{results, turn};
    use super::*;

    fn compared(gateway_cpu_us: f64, added_us: f64) -> Results {
        let get = |side, cpu_us| turn(side, 0, Workload::GetSmall, cpu_us, 100.0);
        let steady = |side, p50_us| turn(side, 0, Workload::SteadyGetSmall, 1.0, p50_us);
        results(vec![
            get(Side::Haproxy, 10.0),
            get(Side::Gateway, gateway_cpu_us),
            steady(Side::Direct, 100.0),
            steady(Side::Gateway, 100.0 + added_us),
        ])
    }

    fn line<'a>(text: &'a str, start: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no line {start:?} in\n{text}"))
    }

    #[test]
    fn each_goal_is_met_at_its_value_and_not_above() {
        let met = text(&compared(17.9, 199.0));
        assert!(line(&met, "| GET, 1 KB ").contains(" 1.79 | ≤ 1.8 | "), "{met}");
        assert_eq!(met.matches("not met").count(), 1, "13 KiB a watch where 12 are wanted:\n{met}");
        let missed = text(&compared(18.1, 201.0));
        assert!(line(&missed, "| GET, 1 KB ").contains("**not met**"), "{missed}");
        assert_eq!(missed.matches("not met").count(), 3, "{missed}");
    }

    #[test]
    fn a_quick_run_or_a_part_of_one_goes_into_no_document() {
        let full = compared(10.0, 10.0);
        assert!(put_into("# Benchmarks\n", &full).unwrap().contains("| GET, 1 KB "));
        let mut quick = full.clone();
        quick.options.quick = true;
        assert!(put_into("", &quick).is_err());
        let mut part = full;
        part.options.side = Some(Side::Gateway);
        assert!(put_into("", &part).is_err());
    }
}
