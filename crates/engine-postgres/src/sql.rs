//! The texts of the statements.
//!
//! Invariant: nothing that a client stores gets into a text; keys and values are parameters. The head's numbers, which this program makes,
//! are written out.

use std::fmt::Write;
use std::ops::Bound;
use std::time::Duration;

use kubewharf_engine::{Direction, Head, Table};

/// Plans that read a table's rows in the order of its key, whatever the planner believes to know of the table: no page of a scan may sort
/// all that is behind it.
const PLANS: [(&str, &str); 4] =
    [("enable_seqscan", "off"), ("enable_bitmapscan", "off"), ("enable_sort", "off"), ("jit", "off")];

/// Said once on a connection of one's own: the plans, and that the server notices within half a minute when this machine is gone, so that
/// its views don't keep the server from cleaning up. A server that does not know a setting is not one that needs it.
pub(crate) const SESSION: &str = "SELECT set_config(name, CASE name WHEN 'tcp_keepalives_idle' THEN '15' \
    WHEN 'tcp_keepalives_interval' THEN '5' WHEN 'tcp_keepalives_count' THEN '3' ELSE 'off' END, false) \
    FROM pg_settings WHERE name IN ('enable_seqscan', 'enable_bitmapscan', 'enable_sort', 'jit', \
    'tcp_keepalives_idle', 'tcp_keepalives_interval', 'tcp_keepalives_count')";

/// Marks a transaction: the value is the batch's own, and gone with the transaction.
const MARK: &str = "kubewharf.batch";

/// A name within the schema, quoted.
pub(crate) fn name(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_name(schema), quote_name(name))
}

/// A name, quoted.
pub(crate) fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Begins a view, which is taken by the first statement that reads.
pub(crate) fn begin_view(is_pooled: bool) -> String {
    let plans = if is_pooled { format!(";SELECT {}", local_plans()) } else { String::new() };
    format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY{plans}")
}

/// Reads the head as text.
pub(crate) fn select_head(schema: &str) -> String {
    format!("SELECT epoch, seq, revision, encode(batch_id, 'hex') FROM {} WHERE id = 1", name(schema, "head"))
}

/// The head of [`select_head`]'s row.
pub(crate) fn head(row: &[Option<String>]) -> Option<Head> {
    let [Some(epoch), Some(seq), Some(revision), Some(batch_id)] = row else { return None };
    Some(Head {
        epoch: epoch.parse::<i64>().ok()?.cast_unsigned(),
        seq: seq.parse::<i64>().ok()?.cast_unsigned(),
        revision: revision.parse().ok()?,
        batch_id: (batch_id.len() == 32).then(|| u128::from_str_radix(batch_id, 16).ok())??,
    })
}

/// Begins a batch's transaction, marks it and moves the head, in one message: each fails if what is before it has failed. A head that is
/// not the expected one is a division by zero, because an update of no row is no error by itself. `heads` are the expected one and the next;
/// `idle_timeout` is how long the server waits for what follows.
pub(crate) fn begin_batch(
    schema: &str,
    mark: &str,
    heads: (&Head, &Head),
    is_pooled: bool,
    idle_timeout: Duration,
) -> String {
    let mut text = String::with_capacity(1024);
    text += "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;SELECT ";
    // The server must not give up a commit that has been sent, nor answer before it is on its disk and, as far as the operator asks for
    // it, on those of its standbys. If the end of what was sent never arrives, because this machine is gone, the head must not stay locked.
    let idle_ms = idle_timeout.as_millis();
    let _ = write!(
        text,
        "set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true), \
         set_config('idle_in_transaction_session_timeout', '{idle_ms}', true), "
    );
    if is_pooled {
        let _ = write!(text, "{}, ", local_plans());
    }
    let _ = write!(
        text,
        "set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN \
         'remote_apply' ELSE 'on' END, true), set_config('{MARK}', '{mark}', true);"
    );
    text += &move_head(schema, heads.0, heads.1);
    text
}

/// Replaces the head, or divides by zero if it is not the expected one.
pub(crate) fn move_head(schema: &str, expected: &Head, next: &Head) -> String {
    let fields = |head: &Head, between: &str| {
        // A negative number without quotes is a positive one of another type, with an operator.
        format!(
            "epoch = '{}'{between} seq = '{}'{between} revision = '{}'{between} batch_id = decode('{:032x}', 'hex')",
            head.epoch.cast_signed(),
            head.seq.cast_signed(),
            head.revision,
            head.batch_id
        )
    };
    format!(
        "WITH moved AS (UPDATE {} SET {} WHERE id = 1 AND {} RETURNING 1) SELECT 1 / count(*) FROM moved",
        name(schema, "head"),
        fields(next, ","),
        fields(expected, " AND")
    )
}

fn local_plans() -> String {
    PLANS.map(|(setting, value)| format!("set_config('{setting}', '{value}', true)")).join(", ")
}

/// Writes rows: an array of keys, one of values, and the transaction's mark.
pub(crate) fn put(schema: &str, table: Table) -> String {
    format!(
        "INSERT INTO {} (k, v) SELECT * FROM unnest($1::bytea[], $2::bytea[]) AS r(k, v) \
         WHERE current_setting('{MARK}') = $3::text ON CONFLICT (k) DO UPDATE SET v = EXCLUDED.v",
        name(schema, table.name())
    )
}

/// Removes rows: an array of keys, and the transaction's mark.
pub(crate) fn delete(schema: &str, table: Table) -> String {
    format!(
        "DELETE FROM {} WHERE k = ANY($1::bytea[]) AND current_setting('{MARK}') = $2::text",
        name(schema, table.name())
    )
}

/// Reads the head and rows of these tables by their keys, which are the parameters, as one row: the head's fields, then the values.
pub(crate) fn read(schema: &str, tables: impl IntoIterator<Item = Table>) -> String {
    let mut text = "SELECT epoch, seq, revision, batch_id".to_owned();
    for (at, table) in tables.into_iter().enumerate() {
        let _ = write!(text, ", (SELECT v FROM {} WHERE k = ${}::bytea)", name(schema, table.name()), at + 1);
    }
    let _ = write!(text, " FROM {} WHERE id = 1", name(schema, "head"));
    text
}

/// Reads one row's value by its key.
pub(crate) fn get(schema: &str, table: Table) -> String {
    format!("SELECT v FROM {} WHERE k = $1::bytea", name(schema, table.name()))
}

/// Reads the rows of an array of keys.
pub(crate) fn get_many(schema: &str, table: Table) -> String {
    format!("SELECT k, v FROM {} WHERE k = ANY($1::bytea[])", name(schema, table.name()))
}

/// Reads rows between bounds, the first so many: a parameter for each bound there is, the lower one first, then the number of rows; then, for
/// the beginnings of values alone, their number of bytes.
pub(crate) fn scan(
    schema: &str,
    table: Table,
    range: (&Bound<&[u8]>, &Bound<&[u8]>),
    direction: Direction,
    of_beginnings: bool,
) -> String {
    let bounds = [range.0, range.1].into_iter().filter(|bound| **bound != Bound::Unbounded).count();
    let value =
        if of_beginnings { format!("substring(v from 1 for ${}::integer)", bounds + 2) } else { "v".to_owned() };
    let mut text = format!("SELECT k, {value} FROM {}", name(schema, table.name()));
    let mut parameters = 0;
    let mut condition = |operator: &str| {
        let _ =
            write!(text, "{} k {operator} ${}::bytea", if parameters == 0 { " WHERE" } else { " AND" }, parameters + 1);
        parameters += 1;
    };
    match range.0 {
        Bound::Included(_) => condition(">="),
        Bound::Excluded(_) => condition(">"),
        Bound::Unbounded => {}
    }
    match range.1 {
        Bound::Included(_) => condition("<="),
        Bound::Excluded(_) => condition("<"),
        Bound::Unbounded => {}
    }
    let order = match direction {
        Direction::Forward => "ASC",
        Direction::Reverse => "DESC",
    };
    let _ = write!(text, " ORDER BY k {order} LIMIT ${}::bigint", parameters + 1);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let field = |text: &str| Some(text.to_owned());
        let row = [field("-1"), field("7"), field("-9"), field("ff000000000000000000000000000001")];
        let head = head(&row).unwrap();
        assert_eq!((head.epoch, head.seq, head.revision), (u64::MAX, 7, -9));
        assert_eq!(head.batch_id, 0xff << 120 | 1);
        let text = move_head("s", &head, &Head::default());
        assert!(text.contains("epoch = '-1' AND seq = '7' AND revision = '-9' AND batch_id"), "{text}");
        assert!(text.contains("decode('ff000000000000000000000000000001', 'hex')"), "{text}");
        assert_eq!(super::head(&row[..3]), None);
        assert_eq!(super::head(&[field("1"), field("1"), field("1"), field("ff")]), None);
        assert_eq!(super::head(&[field("1"), field("1"), field("1"), None]), None);
    }

    #[test]
    fn a_schema_s_name_stays_a_name() {
        assert_eq!(name("a\"; DROP", "head"), "\"a\"\"; DROP\".\"head\"");
    }

    #[test]
    fn a_scan_has_a_condition_for_each_bound() {
        let key: &[u8] = b"k";
        let text = |range: (Bound<&[u8]>, Bound<&[u8]>), direction| {
            scan("s", Table::Log, (&range.0, &range.1), direction, false)
        };
        assert_eq!(
            text((Bound::Included(key), Bound::Excluded(key)), Direction::Forward),
            "SELECT k, v FROM \"s\".\"log\" WHERE k >= $1::bytea AND k < $2::bytea ORDER BY k ASC LIMIT $3::bigint"
        );
        assert_eq!(
            text((Bound::Unbounded, Bound::Included(key)), Direction::Reverse),
            "SELECT k, v FROM \"s\".\"log\" WHERE k <= $1::bytea ORDER BY k DESC LIMIT $2::bigint"
        );
        assert_eq!(
            text((Bound::Unbounded, Bound::Unbounded), Direction::Forward),
            "SELECT k, v FROM \"s\".\"log\" ORDER BY k ASC LIMIT $1::bigint"
        );
        assert_eq!(
            scan("s", Table::Log, (&Bound::Included(key), &Bound::Unbounded), Direction::Forward, true),
            "SELECT k, substring(v from 1 for $3::integer) FROM \"s\".\"log\" WHERE k >= $1::bytea ORDER BY k ASC \
             LIMIT $2::bigint"
        );
    }
}
