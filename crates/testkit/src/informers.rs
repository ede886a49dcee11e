//! What `tests/go/informers` tells: many informers in one program.

use serde_json::Value;

use crate::error::Result;
use crate::process::Process;

/// Its last report; null before the first.
///
/// # Errors
/// When its log can't be read.
///
/// # Panics
/// When the report is no JSON.
pub fn report(process: &Process) -> Result<Value> {
    let text = process.log_text()?;
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = whole.lines().rev().find(|line| line.starts_with('{')).unwrap_or("null");
    Ok(serde_json::from_str(line).expect("a whole line is a report"))
}

/// What it makes of a store that holds the objects of this list.
///
/// # Panics
/// When it is no list of objects.
#[must_use]
pub fn digest(list: &Value) -> String {
    let metadata = list["items"].as_array().expect("a list has items").iter().map(|item| &item["metadata"]);
    let text = |of: &Value, field: &str| of[field].as_str().expect("objects have names and versions").to_owned();
    let mut lines: Vec<String> =
        metadata.map(|of| format!("{} {}\n", text(of, "name"), text(of, "resourceVersion"))).collect();
    lines.sort();
    // FNV-1a.
    let hash = lines
        .concat()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}
