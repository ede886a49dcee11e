//! Where the log goes: standard error, standard output, files.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;

use anyhow::Context;
use kubewharf_brain::config::{LogConfig, LogFormat};
use kubewharf_foundation::telemetry;

/// Starts logging as etcd's flags ask for.
pub(crate) fn init(config: &LogConfig) -> anyhow::Result<()> {
    // etcd's names of the worst levels; nothing here logs above "error".
    let level = match config.level.as_str() {
        "panic" | "fatal" => "error",
        level => level,
    };
    let format = match config.format {
        LogFormat::Json => telemetry::LogFormat::Json,
        LogFormat::Console => telemetry::LogFormat::Text,
    };
    let started = if config.outputs.iter().all(|output| output == "stderr") {
        telemetry::init(format, level)
    } else {
        let outputs: Vec<Output> =
            config.outputs.iter().map(|output| Output::open(output)).collect::<Result<_, _>>()?;
        let outputs = Arc::new(outputs);
        telemetry::init_to(format, level, false, move || Tee(outputs.clone()))
    };
    started.map(drop).map_err(|error| anyhow::anyhow!("can't start logging: {error}"))
}

enum Output {
    Stderr,
    Stdout,
    File(File),
}

impl Output {
    fn open(name: &str) -> anyhow::Result<Self> {
        Ok(match name {
            "stderr" => Self::Stderr,
            "stdout" => Self::Stdout,
            path => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                Self::File(file.with_context(|| format!("--log-outputs: can't open {path}"))?)
            }
        })
    }

    fn write_all(&self, record: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().write_all(record),
            Self::Stdout => io::stdout().write_all(record),
            Self::File(file) => (&mut &*file).write_all(record),
        }
    }
}

/// Writes each record, which comes as a whole, to all outputs.
struct Tee(Arc<Vec<Output>>);

impl Write for Tee {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        // An output that fails keeps the others from nothing.
        for output in self.0.iter() {
            let _ = output.write_all(record);
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
