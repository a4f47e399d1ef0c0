//! Compares autoscalers on simulated traffic: each gets its target by search on a training seed, results come from other
//! seeds. Prints a table in Markdown, and writes results.csv and trace.csv.
//!
//! `make bench-scaling`. IMAGEGEN_BENCH_SEEDS is the number of seeds (5), IMAGEGEN_BENCH_OUT the folder (the current one).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench ends at the first surprise")]

#[path = "../tests/simulator/mod.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod simulator;

use std::{fmt::Write as _, fs, path::PathBuf, thread, time::Instant};

use simulator::{
    autoscaler::Kind,
    card::Card,
    outcome::Outcome,
    scenario::{self, Scenario},
    world::run,
};

/// The seed on which targets are searched; results come from the seeds after it.
const TRAINING_SEED: u64 = 1000;

/// An autoscaler with the target that the search found for it.
#[derive(Clone, Copy)]
struct Contender {
    kind: Kind,
    target: f64,
}

/// The runs of one contender on one scenario, one for each seed.
struct Results {
    contender: Contender,
    outcomes: Vec<Outcome>,
}

fn main() {
    let seeds: u64 = std::env::var("IMAGEGEN_BENCH_SEEDS").map_or(5, |text| text.parse().expect("a number"));
    let folder = std::env::var_os("IMAGEGEN_BENCH_OUT").map_or_else(|| ".".into(), PathBuf::from);
    let card = Card::h100();
    let scenarios = scenario::all();
    let started = Instant::now();
    println!("Card: {}. {seeds} seeds.\n", card.card);

    let contenders: Vec<Contender> = in_parallel(&Kind::ALL, |kind| search(&card, &scenarios, *kind));
    println!("| autoscaler | target found on the training seed | |\n| --- | --- | --- |");
    for Contender { kind, target } in &contenders {
        println!("| {} | {target} | {} |", kind.name(), kind.target_unit());
    }

    let mut csv = String::from(
        "scenario,autoscaler,target,seed,gpu_hours,wait_p50_seconds,wait_p99_seconds,arrived,lost,out_of_memory,flaps,seconds_to_size,cost_gpu_hours\n",
    );
    let mut trace = String::from("scenario,autoscaler,seconds,load_workers,wanted,serving\n");
    for scenario in scenarios.iter().chain([&scenario::large()]) {
        let jobs: Vec<(Contender, u64)> = contenders
            .iter()
            .flat_map(|contender| (1..=seeds).map(|seed| (*contender, TRAINING_SEED + seed)))
            .collect();
        let outcomes =
            in_parallel(&jobs, |(contender, seed)| run(&card, scenario, contender.kind, contender.target, *seed));
        let mut outcomes = outcomes.into_iter();
        let results: Vec<Results> = contenders
            .iter()
            .map(|contender| Results {
                contender: *contender,
                outcomes: outcomes.by_ref().take(usize::try_from(seeds).unwrap()).collect(),
            })
            .collect();
        print_table(scenario, &results);
        write_csv(&mut csv, &mut trace, scenario, &results);
    }
    fs::write(folder.join("results.csv"), csv).expect("the folder can be written");
    fs::write(folder.join("trace.csv"), trace).expect("the folder can be written");
    eprintln!("took {:.0} s", started.elapsed().as_secs_f64());
}

/// The target with the least cost over all scenarios on the training seed.
fn search(card: &Card, scenarios: &[Scenario], kind: Kind) -> Contender {
    let cost = |target: f64| -> f64 {
        scenarios.iter().map(|scenario| run(card, scenario, kind, target, TRAINING_SEED).cost()).sum()
    };
    let costs = kind.targets().iter().map(|target| (cost(*target), *target));
    let (_, target) = costs.min_by(|(a, _), (b, _)| a.total_cmp(b)).expect("every kind has targets");
    Contender { kind, target }
}

fn print_table(scenario: &Scenario, results: &[Results]) {
    println!("\n### {}\n", scenario.name);
    println!(
        "| autoscaler | GPU-hours | P50 wait s | P99 wait s | lost % | OOMs | flaps | burst to size s | cost |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    for Results { contender, outcomes } in results {
        let spread = |value: &dyn Fn(&Outcome) -> f64, digits: usize| {
            let mut all: Vec<f64> = outcomes.iter().map(value).collect();
            all.sort_by(f64::total_cmp);
            let (least, median, most) = (all[0], all[all.len() / 2], all[all.len() - 1]);
            format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
        };
        let to_size = if outcomes.iter().any(|outcome| outcome.to_size().is_some()) {
            spread(&|outcome| outcome.to_size().unwrap_or(f64::NAN), 0)
        } else {
            "-".into()
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {to_size} | {} |",
            contender.kind.name(),
            spread(&Outcome::gpu_hours, 1),
            spread(&|outcome| outcome.wait_quantile(0.5), 1),
            spread(&|outcome| outcome.wait_quantile(0.99), 1),
            spread(&|outcome| 100.0 * outcome.lost as f64 / outcome.arrived as f64, 2),
            spread(&|outcome| outcome.out_of_memory as f64, 0),
            spread(&|outcome| outcome.flaps() as f64, 0),
            spread(&Outcome::cost, 1),
        );
    }
}

fn write_csv(csv: &mut String, trace: &mut String, scenario: &Scenario, results: &[Results]) {
    for Results { contender, outcomes } in results {
        let name = contender.kind.name().replace(',', "");
        let scenario = scenario.name.replace(',', "");
        for (index, outcome) in outcomes.iter().enumerate() {
            let to_size = outcome.to_size().map_or_else(String::new, |seconds| seconds.to_string());
            writeln!(
                csv,
                "{scenario},{name},{},{},{:.3},{:.3},{:.3},{},{},{},{},{to_size},{:.3}",
                contender.target,
                TRAINING_SEED + 1 + index as u64,
                outcome.gpu_hours(),
                outcome.wait_quantile(0.5),
                outcome.wait_quantile(0.99),
                outcome.arrived,
                outcome.lost,
                outcome.out_of_memory,
                outcome.flaps(),
                outcome.cost(),
            )
            .unwrap();
        }
        for (seconds, load, wanted, serving) in &outcomes[0].trace {
            writeln!(trace, "{scenario},{name},{seconds:.0},{load:.3},{wanted},{serving}").unwrap();
        }
    }
}

/// The results in the order of `jobs`, from as many threads as the machine has cores.
fn in_parallel<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let work = &work;
    let mut results: Vec<(usize, R)> = thread::scope(|scope| {
        let share = |first: usize| {
            scope.spawn(move || {
                let own = (first..jobs.len()).step_by(threads);
                own.map(|index| (index, work(&jobs[index]))).collect::<Vec<_>>()
            })
        };
        let handles: Vec<_> = (0..threads).map(share).collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("a run does not panic")).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
