//! Shows results as tables: for a terminal, and as the section of BENCHMARKS.md. Both are the same text, because a
//! Markdown table whose columns are filled up with blanks reads well anywhere.

use anyhow::{Result, ensure};

use super::goals::{self, Goal};
use super::measure::Measured;
use super::options::Side;
use super::results::{Footprint, Results};
use super::workloads::Workload;
use crate::document::{Section, Table, grouped, number};

const SECTION: Section = Section {
    begin: "<!-- bench-brain: begin; written by the benchmark, do not edit -->",
    end: "<!-- bench-brain: end -->",
};

/// The results as text.
pub fn text(results: &Results) -> String {
    let mut text = preface(results);
    for &keys in &results.options.keys {
        text += &format!("\n### {} keys\n\n", grouped(keys));
        text += "Server CPU time in µs; `client` is this program's own, with KubeBrain:\n\n";
        text += &cpu_table(results, keys).text();
        text += "\nThroughput in units a second, and latency as the client sees it, in ms:\n\n";
        text += &latency_table(results, keys).text();
        text += "\nMemory and disk in MiB, time in s:\n\n";
        text += &footprint_table(results, keys).text();
    }
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
    let machine = &results.machine;
    let options = &results.options;
    let mut text = format!("## KubeBrain and etcd\n\n`{}`, {}.\n\n", results.command, results.date);
    for (side, version) in &results.versions {
        text += &format!("- {}: {version}\n", name(*side));
    }
    text += &format!(
        "- Machine: {}, {} cores, {:.0} GiB, Linux {}, {}; a durable write of 4 KiB takes {:.0} µs (p99 {:.0} µs)\n",
        machine.processor,
        machine.cores,
        machine.memory_gib,
        machine.kernel,
        machine.file_system,
        machine.sync_p50_us,
        machine.sync_p99_us,
    );
    text += &format!(
        "- Load: kube-apiserver's requests, keys of {} and values of {} bytes, {} requests in flight over {} \
         connections; {} watchers\n- Every acknowledged write is durable on both sides. Both sides ran in turn on the \
         same disk, {} {}; numbers are medians.\n",
        options.key_bytes,
        options.value_bytes,
        options.in_flight,
        options.connections,
        options.watchers,
        options.rounds,
        if options.rounds == 1 { "round" } else { "rounds" },
    );
    text
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Etcd => "etcd",
        Side::Brain => "KubeBrain",
    }
}

fn cpu_table(results: &Results, keys: u64) -> Table {
    let mut table = Table::new(["", "per", "etcd", "KubeBrain", "ratio", "goal", "", "client"]);
    for workload in results.workloads(keys) {
        let of = |side| results.of_workload(side, keys, workload, Measured::server_cpu_us);
        let ratio = goals::workload_ratio(results, keys, workload, Measured::server_cpu_us);
        let [ratio, goal, met] = verdict(ratio, goals::cpu(workload));
        let client = results.of_workload(Side::Brain, keys, workload, Measured::client_cpu_us);
        let [etcd, brain] = Side::ALL.map(|side| number(of(side)));
        let unit = workload.unit().to_owned();
        table.row([workload.label().to_owned(), unit, etcd, brain, ratio, goal, met, number(client)]);
    }
    table
}

fn latency_table(results: &Results, keys: u64) -> Table {
    let mut table = Table::new(["", "latency of", "", "rate", "p50", "p99", "max", "p99 ratio", "goal", ""]);
    for workload in results.workloads(keys) {
        for side in Side::ALL {
            let of = |number| results.of_workload(side, keys, workload, number);
            let Some(rate) = of(Measured::rate) else { continue };
            let ratio = goals::workload_ratio(results, keys, workload, |measured| measured.p99_us);
            let ratio = ratio.filter(|_| side == Side::Brain);
            let goal = goals::p99(workload).filter(|_| side == Side::Brain);
            let [ratio, goal, met] = verdict(ratio, goal);
            let ms = |us: Option<f64>| number(us.map(|us| us / 1e3));
            table.row([
                workload.label().to_owned(),
                workload.latency_of().to_owned(),
                name(side).to_owned(),
                grouped(rate.round() as u64),
                ms(of(|measured| measured.p50_us)),
                ms(of(|measured| measured.p99_us)),
                ms(of(|measured| measured.max_us)),
                ratio,
                goal,
                met,
            ]);
        }
    }
    table
}

fn footprint_table(results: &Results, keys: u64) -> Table {
    type Row = (&'static str, fn(&Footprint) -> f64);
    fn mib(bytes: u64) -> f64 {
        bytes as f64 / f64::from(1 << 20)
    }
    let rows: [Row; 8] = [
        ("anonymous memory after the load", |footprint| mib(footprint.anonymous_after_load_bytes)),
        ("anonymous memory, peak", |footprint| mib(footprint.anonymous_peak_bytes)),
        ("mapped files after the load", |footprint| mib(footprint.mapped_after_load_bytes)),
        ("resident memory after the load", |footprint| mib(footprint.resident_after_load_bytes)),
        ("resident memory, peak", |footprint| mib(footprint.resident_peak_bytes)),
        ("disk after the load", |footprint| mib(footprint.disk_after_load_bytes)),
        ("disk at the end", |footprint| mib(footprint.disk_at_end_bytes)),
        ("restart after a kill, to the first read", |footprint| footprint.restart_seconds),
    ];
    let mut table = Table::new(["", "etcd", "KubeBrain", "ratio", "goal", ""]);
    for (index, (label, of)) in rows.into_iter().enumerate() {
        let goal = (index == 0 && keys >= goals::ANONYMOUS_MEMORY_KEYS_MIN).then_some(goals::ANONYMOUS_MEMORY);
        let [ratio, goal, met] = verdict(goals::footprint_ratio(results, keys, of), goal);
        let [etcd, brain] = Side::ALL.map(|side| number(results.of_footprint(side, keys, of)));
        table.row([label.to_owned(), etcd, brain, ratio, goal, met]);
    }
    table
}

/// The ratio, the goal, and whether it is met.
fn verdict(ratio: Option<f64>, goal: Option<Goal>) -> [String; 3] {
    let met = ratio.zip(goal).map(|(ratio, goal)| if goal.is_met(ratio) { "met" } else { "**not met**" });
    let goal = goal.map(|goal| format!("≤ {}", goal.ratio_max));
    [
        ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}")),
        goal.unwrap_or_default(),
        met.unwrap_or("").to_owned(),
    ]
}

/// One line for a workload that has just run.
pub fn progress(workload: Workload, measured: &Measured) -> String {
    let (unit, rate) = (workload.unit(), grouped(measured.rate().round() as u64));
    format!(
        "{:<30}{:>10} µs of CPU per {unit} (client {}), {rate} a second, p99 {} ms, {} MiB",
        workload.label(),
        number(Some(measured.server_cpu_us())),
        number(Some(measured.client_cpu_us())),
        number(Some(measured.p99_us / 1e3)),
        measured.anonymous_peak_bytes >> 20,
    )
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{results, turn};
    use super::*;

    fn compared(brain_cpu_us: f64, brain_p99_us: f64) -> Results {
        results(vec![turn(Side::Etcd, 0, 100.0, 1000.0, 64), turn(Side::Brain, 0, brain_cpu_us, brain_p99_us, 16)])
    }

    fn line<'a>(text: &'a str, start: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no line {start:?} in\n{text}"))
    }

    #[test]
    fn a_goal_is_met_at_its_ratio_and_not_above() {
        let text = text(&compared(29.0, 900.0));
        let row = line(&text, "| create ");
        assert!(row.contains(" 0.290 ") && row.contains(" ≤ 0.3 ") && row.contains(" met "), "{row}");
        assert!(!text.contains("not met"), "{text}");
        let text = super::text(&compared(31.0, 1100.0));
        assert!(line(&text, "| create ").contains("**not met**"), "{text}");
        assert_eq!(text.matches("not met").count(), 2, "CPU and p99:\n{text}");
    }

    #[test]
    fn one_side_alone_is_shown_without_ratios() {
        let text = text(&results(vec![turn(Side::Etcd, 0, 100.0, 1000.0, 64)]));
        assert!(line(&text, "| create ").contains(" 100 "), "{text}");
        assert!(!text.contains(" met "), "{text}");
    }

    #[test]
    fn only_the_section_of_the_document_changes() {
        let results = compared(29.0, 900.0);
        let first = put_into("# Benchmarks\n", &results).unwrap();
        assert!(first.starts_with("# Benchmarks\n\n<!--") && first.contains("| create "), "{first}");
        let document = first.replace("29.0", "99.9") + "\nAfter.\n";
        let second = put_into(&document, &results).unwrap();
        assert_eq!(second, first.clone() + "\nAfter.\n");
        assert!(put_into(&first.replace(SECTION.end, ""), &results).is_err());
    }

    #[test]
    fn a_quick_run_goes_into_no_document() {
        let mut results = compared(29.0, 900.0);
        results.options.quick = true;
        assert!(put_into("", &results).is_err());
    }
}
