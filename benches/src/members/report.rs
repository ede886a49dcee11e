//! Shows results as tables: for a terminal, and as the section of BENCHMARKS.md.

use anyhow::{Result, ensure};

use super::failover::Fault;
use super::goals::{Compared, gap_p99_ms};
use super::options::Side;
use super::results::{Cost, Results, quantile};
use crate::brain::workloads::Workload;
use crate::document::{Section, Table, grouped, number};
use crate::turns::Turn;

const SECTION: Section = Section {
    begin: "<!-- bench-members: begin; written by the benchmark, do not edit -->",
    end: "<!-- bench-members: end -->",
};

/// The document with the section of this benchmark replaced, or added at its end.
///
/// # Errors
/// When the section's end is missing, or the results are of no full run.
pub fn put_into(document: &str, results: &Results) -> Result<String> {
    let options = &results.options;
    ensure!(!options.quick, "the results are of a quick run; documents tell those of a full one");
    ensure!(options.side.is_empty() && options.only.is_empty(), "the results are of a part of a run");
    SECTION.put_into(document, &text(results))
}

/// The results as text.
pub fn text(results: &Results) -> String {
    let mut text = preface(results);
    if !results.turns.is_empty() {
        text += "\nBeside kine: how many times better KubeBrain is; ratios are medians of those of each round:\n\n";
        text += &kine_table(results).text();
        text += "\nUnits a second, latency as the client sees it, in ms, and processor time in µs a unit: of the store, over all members; of \
                 PostgreSQL, all its processes; of this program:\n\n";
        text += &workloads_table(results).text();
        text += "\nReads and deliveries against the number of members; `of 1` is the share of one member's number:\n\n";
        text += &members_table(results).text();
    }
    if !results.gaps.is_empty() {
        text += "\nTime without an acknowledged write, in ms, when this happens to the leader of three members:\n\n";
        text += &gaps_table(results).text();
    }
    text
}

fn preface(results: &Results) -> String {
    let (machine, options) = (&results.machine, &results.options);
    let mut text = format!(
        "## KubeBrains on one PostgreSQL, a cluster of etcds, and kine\n\n`{}`, {}.\n\n",
        results.command, results.date
    );
    for (name, version) in &results.versions {
        text += &format!("- {name}: {version}\n");
    }
    text += &format!(
        "- Machine: {}, {} cores, {:.0} GiB, Linux {}, {}; a durable write of 4 KiB takes {:.0} µs (p99 {:.0} µs). All programs share all \
         cores and the disk, also those that would be on machines of their own\n",
        machine.processor,
        machine.cores,
        machine.memory_gib,
        machine.kernel,
        machine.file_system,
        machine.sync_p50_us,
        machine.sync_p99_us,
    );
    text += &format!(
        "- Load: kube-apiserver's requests, {} keys of {} and values of {} bytes, {} requests in flight over {} connections, which are \
         spread over all members; {} watchers. Every acknowledged write is durable on all sides\n",
        grouped(options.keys),
        options.key_bytes,
        options.value_bytes,
        options.in_flight,
        options.connections,
        options.watchers,
    );
    if !options.kine_flag.is_empty() {
        text += &format!("- kine has the flags `{}`\n", options.kine_flag.join(" "));
    }
    text += &format!(
        "- Failover: a write begins at each member every {} ms, whatever became of those before; a pause takes {} ms\n- All sides ran in \
         turn, {} {}; numbers are medians.\n",
        options.write_interval_ms,
        options.pause_ms,
        options.rounds,
        if options.rounds == 1 { "round" } else { "rounds" },
    );
    text
}

fn kine_table(results: &Results) -> Table {
    let head = ["", "", "kine", "1 member", "times better", "", "3 members", "times better", "", "goal"];
    let mut table = Table::new(head);
    // A compaction is there for the lists that follow: kine's leaves the newest thousand revisions alone.
    for workload in results.workloads().into_iter().filter(|workload| *workload != Workload::Compact) {
        for compared in Compared::ALL {
            let of = |side| results.of(side, workload, compared.number());
            if of(Side::Kine).is_none() {
                continue;
            }
            let goal = compared.goal(workload);
            let beside = |side: Side| {
                let times = compared.times_better(results, side, workload);
                let met = times.zip(goal).map_or("", |(times, goal)| verdict(times >= goal));
                [number(of(side)), number(times), met.to_owned()]
            };
            let ([one, one_times, one_met], [three, three_times, three_met]) =
                (beside(Side::Brain1), beside(Side::Brain3));
            table.row([
                workload.label().to_owned(),
                compared.label().to_owned(),
                number(of(Side::Kine)),
                one,
                one_times,
                one_met,
                three,
                three_times,
                three_met,
                goal.map_or_else(String::new, |goal| format!("≥ {goal}")),
            ]);
        }
    }
    table
}

fn workloads_table(results: &Results) -> Table {
    let head = ["", "", "per", "a second", "p50", "p99", "max", "store", "PostgreSQL", "client", "writes a round trip"];
    let mut table = Table::new(head);
    for workload in results.workloads() {
        for side in Side::ALL {
            let of = |number| results.of(side, workload, number);
            let Some(rate) = of(|cost| cost.measured.rate()) else { continue };
            let ms = |us: Option<f64>| number(us.map(|us| us / 1e3));
            let database = of(|cost| cost.measured.database_cpu_us()).filter(|_| side != Side::Etcd3);
            table.row([
                workload.label().to_owned(),
                side.label().to_owned(),
                workload.unit().to_owned(),
                grouped(rate.round() as u64),
                ms(of(|cost| cost.measured.p50_us)),
                ms(of(|cost| cost.measured.p99_us)),
                ms(of(|cost| cost.measured.max_us)),
                number(of(|cost| cost.measured.server_cpu_us())),
                number(database),
                number(of(|cost| cost.measured.client_cpu_us())),
                number(writes_a_round_trip(results, side, workload)),
            ]);
        }
    }
    table
}

/// How many requests shared a commit, and with it a round trip to the engine. A leader's own commits, which tell that it lives, count too
/// few to show where there are writes, and are all there is where there are none.
fn writes_a_round_trip(results: &Results, side: Side, workload: Workload) -> Option<f64> {
    if !matches!(workload, Workload::Update | Workload::Create | Workload::Watch) {
        return None;
    }
    let of = |cost: &Cost| cost.commits.map_or(f64::NAN, |commits| commits.requests / commits.commits);
    results.of(side, workload, of).filter(|number| number.is_finite())
}

fn members_table(results: &Results) -> Table {
    let head = [
        "",
        "members",
        "a second",
        "of 1",
        "p50",
        "p99",
        "store",
        "PostgreSQL",
        "store and PostgreSQL, of 1",
        "client",
    ];
    let mut table = Table::new(head);
    for workload in [Workload::Get, Workload::Watch] {
        for side in [Side::Brain1, Side::Brain2, Side::Brain3] {
            let of = |number: fn(&Cost) -> f64| results.of(side, workload, number);
            let of_one = |number: fn(&Cost) -> f64| {
                let share = of(number)? / results.of(Side::Brain1, workload, number)?;
                Some(share).filter(|_| side != Side::Brain1)
            };
            let Some(rate) = of(|cost| cost.measured.rate()) else { continue };
            let ms = |us: Option<f64>| number(us.map(|us| us / 1e3));
            table.row([
                format!("{}, per {}", workload.label(), workload.unit()),
                side.members().to_string(),
                grouped(rate.round() as u64),
                number(of_one(|cost| cost.measured.rate())),
                ms(of(|cost| cost.measured.p50_us)),
                ms(of(|cost| cost.measured.p99_us)),
                number(of(|cost| cost.measured.server_cpu_us())),
                number(of(|cost| cost.measured.database_cpu_us())),
                number(of_one(Cost::cpu_us)),
                number(of(|cost| cost.measured.client_cpu_us())),
            ]);
        }
    }
    table
}

fn gaps_table(results: &Results) -> Table {
    let mut table = Table::new(["", "", "times", "p50", "p99", "max", "goal for p99", ""]);
    for fault in Fault::ALL {
        for side in [Side::Etcd3, Side::Brain3] {
            let gaps = results.gaps(side, fault);
            if gaps.is_empty() {
                continue;
            }
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&gaps, share));
            let goal = gap_p99_ms(fault).filter(|_| side == Side::Brain3);
            let met = p99.zip(goal).map_or("", |(p99, goal)| verdict(p99 <= goal));
            table.row([
                fault.label().to_owned(),
                side.label().to_owned(),
                gaps.len().to_string(),
                number(p50),
                number(p99),
                number(max),
                goal.map_or_else(String::new, |goal| format!("≤ {}", grouped(goal as u64))),
                met.to_owned(),
            ]);
        }
    }
    table
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "**not met**" }
}

/// One line for a workload that has just run.
pub fn progress(turn: &Turn<Side, Workload, Cost>) -> String {
    let measured = &turn.measured.measured;
    format!(
        "{:<22}{:>9} a second, p50 {} ms, p99 {} ms, CPU per {}: {} µs, PostgreSQL {} µs, client {} µs",
        turn.workload.label(),
        grouped(measured.rate().round() as u64),
        number(Some(measured.p50_us / 1e3)),
        number(Some(measured.p99_us / 1e3)),
        turn.workload.unit(),
        number(Some(measured.server_cpu_us())),
        number(Some(measured.database_cpu_us())),
        number(Some(measured.client_cpu_us())),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::options::Options;
    use super::super::results::Gap;
    use super::super::stores::Commits;
    use super::*;
    use crate::brain::measure::Measured;
    use crate::machine::Machine;
    use crate::program::Results as _;

    /// A round in which so many a second were done, each for so many microseconds of processor time, and twice that in the database.
    fn turn(side: Side, workload: Workload, rate: f64, cpu_us: f64) -> Turn<Side, Workload, Cost> {
        let measured = Measured {
            operations: 1000,
            units: 1000,
            wall_seconds: 1000.0 / rate,
            server_cpu_seconds: cpu_us / 1000.0,
            database_cpu_seconds: cpu_us / 500.0,
            client_cpu_seconds: 0.01,
            p50_us: 1000.0,
            p99_us: 2000.0,
            max_us: 3000.0,
            anonymous_peak_bytes: 1 << 20,
        };
        let commits = (side != Side::Kine).then_some(Commits { commits: 10.0, requests: 1000.0 });
        Turn { side, round: 0, workload, measured: Cost { measured, commits } }
    }

    fn results(list_cpu_us: f64, kill_ms: f64) -> Results {
        let gap = |side, fault, ms| Gap { side, round: 0, fault, ms };
        Results {
            date: "2026-01-01".to_owned(),
            command: "make bench-members".to_owned(),
            machine: Machine::example(),
            versions: vec![("kine".to_owned(), "kine 1".to_owned())],
            options: Options::parse_from(["bench-members"]),
            turns: vec![
                turn(Side::Kine, Workload::Create, 1000.0, 300.0),
                turn(Side::Brain1, Workload::Create, 3000.0, 60.0),
                turn(Side::Brain3, Workload::Create, 4000.0, 70.0),
                turn(Side::Kine, Workload::List500, 1e5, 10.0),
                turn(Side::Brain3, Workload::List500, 1e6, list_cpu_us),
            ],
            gaps: vec![gap(Side::Brain3, Fault::Kill, 300.0), gap(Side::Brain3, Fault::Kill, kill_ms)],
        }
    }

    fn line<'a>(text: &'a str, parts: &[&str]) -> &'a str {
        let found = text.lines().find(|line| parts.iter().all(|part| line.contains(part)));
        found.unwrap_or_else(|| panic!("no line {parts:?} in\n{text}"))
    }

    #[test]
    fn goals_are_judged_for_each_number_of_members() {
        let text = text(&results(2.0, 600.0));
        let create = line(&text, &["| create ", "a second", "≥ 4"]);
        assert!(create.contains(" 3.00 | **not met** ") && create.contains(" 4.00 | met "), "{create}");
        let list = line(&text, &["| list, pages of 500 ", "CPU with PostgreSQL"]);
        assert!(list.contains(" 5.00 ") && list.contains(" met ") && list.contains(" ≥ 5 "), "{list}");
        assert!(line(&text, &["| the leader is killed "]).contains(" ≤ 600 | met |"), "{text}");
        assert!(line(&text, &["| create ", "KubeBrain, 3 members"]).ends_with(" 100 |"), "{text}");
        let text = super::text(&results(2.1, 601.0));
        assert!(line(&text, &["| the leader is killed "]).contains("**not met**"), "{text}");
    }

    #[test]
    fn json_keeps_everything_that_is_told() {
        let results = results(2.0, 600.0);
        let again = Results::from_json(&results.to_json().unwrap()).unwrap();
        assert_eq!(text(&again), text(&results));
        assert!(put_into("", &results).unwrap().contains("## KubeBrains"));
    }

    #[test]
    fn a_part_of_a_run_goes_into_no_document() {
        let mut results = results(2.0, 600.0);
        results.options.side = vec![Side::Kine];
        assert!(put_into("", &results).is_err());
    }
}
