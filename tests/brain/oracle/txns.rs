//! Txn: compares of every kind, branches, nesting, limits, and what may not stand together.

use kubewharf_etcd_api::etcdserverpb::compare::TargetUnion;
use kubewharf_etcd_api::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest,
};

use super::pair::Pair;
use super::recorder::Recorder;
use crate::client::{Operation, compact, delete, delete_range, get, put, range};

const EQUAL: i32 = 0;
const VERSION: i32 = 0;
const CREATE: i32 = 1;
const MOD: i32 = 2;
const VALUE: i32 = 3;
const LEASE: i32 = 4;

fn compare(key: &str, target: i32, result: i32, operand: Option<TargetUnion>) -> Compare {
    Compare { result, target, key: key.to_owned().into(), range_end: "".into(), target_union: operand }
}

/// A transaction without compares.
fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

/// A transaction that takes its second branch.
fn otherwise(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
    let never = compare("nowhere", VERSION, EQUAL, Some(TargetUnion::Version(7)));
    TxnRequest { compare: vec![never], success, failure }
}

async fn show_all(recorder: &mut Recorder) {
    let _ = recorder.range(range("\0", "\0")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compares_are_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("targets, results and operands", async |recorder| {
        let _ = recorder.grant(LeaseGrantRequest { id: 50, ttl: 1000 }).await;
        for (key, value) in [("a", "1"), ("b", "5"), ("b", "5"), ("c", ""), ("gone", "1")] {
            let _ = recorder.put(PutRequest { lease: if key == "b" { 50 } else { 0 }, ..put(key, value) }).await;
        }
        let _ = recorder.delete_range(delete("gone")).await;
        let mut operands = vec![None];
        for number in [-1, 0, 1, 2, 50, 51, recorder.at(1), recorder.at(2), recorder.at(3), i64::MAX] {
            operands.push(Some(TargetUnion::Version(number)));
            operands.push(Some(TargetUnion::CreateRevision(number)));
            operands.push(Some(TargetUnion::ModRevision(number)));
            operands.push(Some(TargetUnion::Lease(number)));
        }
        for value in ["", "1", "3", "5", "9"] {
            operands.push(Some(TargetUnion::Value(value.into())));
        }
        // A compare whose operand is of another kind is compared with 0 or nothing: one number shows that.
        let fits = |target: i32, operand: &Option<TargetUnion>| match operand {
            None | Some(TargetUnion::Version(1) | TargetUnion::Lease(1)) => true,
            Some(TargetUnion::Version(_)) => target == VERSION,
            Some(TargetUnion::CreateRevision(_)) => target == CREATE,
            Some(TargetUnion::ModRevision(_)) => target == MOD,
            Some(TargetUnion::Value(value)) => target == VALUE || value == "1",
            Some(TargetUnion::Lease(_)) => target == LEASE,
        };
        let keys = [("a", ""), ("b", ""), ("c", ""), ("gone", ""), ("a", "c"), ("a", "\0"), ("x", "y"), ("c", "a")];
        for (key, end) in keys {
            for target in [VERSION, CREATE, MOD, VALUE, LEASE, 5, -1] {
                for operand in operands.iter().filter(|operand| fits(target, operand)) {
                    for result in [0, 1, 2, 3, 4, -1] {
                        let compare =
                            Compare { range_end: end.into(), ..compare(key, target, result, operand.clone()) };
                        let _ = recorder.txn(TxnRequest { compare: vec![compare], ..TxnRequest::default() }).await;
                    }
                }
            }
        }
    })
    .await;
    pair.same("several compares", async |recorder| {
        let _ = recorder.put(put("a", "1")).await;
        let yes = compare("a", VERSION, EQUAL, Some(TargetUnion::Version(1)));
        let no = compare("a", VERSION, EQUAL, Some(TargetUnion::Version(2)));
        for compare in [vec![], vec![yes.clone(), yes.clone()], vec![yes.clone(), no.clone()], vec![no.clone(), yes]] {
            let request = TxnRequest { compare, success: vec![get("a").op()], failure: vec![put("b", "1").op()] };
            let _ = recorder.txn(request).await;
        }
        let _ = recorder.txn(TxnRequest { compare: vec![compare("", VERSION, EQUAL, None)], ..then(vec![]) }).await;
    })
    .await;
    pair.finish("compares");
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_are_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("what kube-apiserver sends", async |recorder| {
        let key = "/registry/pods/default/a";
        let at = |revision| vec![compare(key, MOD, EQUAL, Some(TargetUnion::ModRevision(revision)))];
        let create = TxnRequest { compare: at(0), ..then(vec![put(key, "1").op()]) };
        let _ = recorder.txn(create.clone()).await;
        let _ = recorder.txn(create).await;
        for revision in [recorder.at(1), recorder.at(1), 0] {
            let success = vec![put(key, "2").op()];
            let _ = recorder.txn(TxnRequest { compare: at(revision), success, failure: vec![get(key).op()] }).await;
        }
        for revision in [recorder.at(1), recorder.at(2), recorder.at(2)] {
            let success = vec![delete(key).op()];
            let _ = recorder.txn(TxnRequest { compare: at(revision), success, failure: vec![get(key).op()] }).await;
        }
        let version = vec![compare("compact_rev_key", VERSION, EQUAL, Some(TargetUnion::Version(0)))];
        let success = vec![put("compact_rev_key", recorder.at(2).to_string()).op()];
        let request = TxnRequest { compare: version, success, failure: vec![get("compact_rev_key").op()] };
        let _ = recorder.txn(request.clone()).await;
        let _ = recorder.txn(request).await;
    })
    .await;
    pair.same("revisions inside", async |recorder| {
        let _ = recorder.txn(then(vec![])).await;
        let _ = recorder.txn(then(vec![get("a").op()])).await;
        let _ = recorder.txn(then(vec![delete("a").op()])).await;
        let _ = recorder.txn(otherwise(vec![put("a", "1").op()], vec![])).await;
        let _ = recorder.txn(then(vec![get("a").op(), put("a", "1").op(), get("a").op(), put("b", "1").op()])).await;
        let _ = recorder.txn(then(vec![delete("none").op(), get("a").op(), put("c", "1").op()])).await;
        let previous = PutRequest { prev_kv: true, ..put("a", "2") };
        let _ = recorder.txn(then(vec![range("a", "z").op(), previous.op(), range("a", "z").op()])).await;
        let _ = recorder.txn(then(vec![put("a", "3").op(), put("d", "1").op(), delete("b").op(), get("b").op()])).await;
        let both = DeleteRangeRequest { prev_kv: true, ..delete_range("a", "z") };
        let _ = recorder.txn(then(vec![both.clone().op(), range("a", "z").op(), both.op()])).await;
        show_all(recorder).await;
        for writes in 0..=6 {
            let _ = recorder.range(RangeRequest { revision: recorder.at(writes), ..range("\0", "\0") }).await;
        }
    })
    .await;
    pair.same("reads at revisions inside", async |recorder| {
        for value in 0..6 {
            let _ = recorder.put(put("a", value.to_string())).await;
        }
        let _ = recorder.compact(compact(recorder.at(3))).await;
        for revision in [-1, recorder.at(2), recorder.at(3), recorder.at(5), recorder.at(6), recorder.at(7), i64::MAX] {
            let read = RangeRequest { revision, ..get("a") };
            let _ = recorder.txn(then(vec![read.clone().op()])).await;
            let _ = recorder.txn(then(vec![then(vec![read.clone().op()]).op()])).await;
            // Not the branch that is taken.
            let _ = recorder.txn(otherwise(vec![read.clone().op()], vec![get("a").op()])).await;
            let nested = otherwise(vec![read.clone().op()], vec![]);
            let _ = recorder.txn(then(vec![nested.op(), get("b").op()])).await;
            if revision != recorder.at(7) {
                // The read of the revision that the transaction itself makes is a matter of its own.
                let _ = recorder.txn(then(vec![put("b", "1").op(), read.clone().op()])).await;
                let _ = recorder.txn(then(vec![read.op(), put("b", "2").op()])).await;
                let _ = recorder.delete_range(delete("b")).await;
            }
            show_all(recorder).await;
        }
    })
    .await;
    pair.same("options of operations inside", async |recorder| {
        let _ = recorder.grant(LeaseGrantRequest { id: 3, ttl: 1000 }).await;
        for key in ["a", "b", "c", "d"] {
            let _ = recorder.put(PutRequest { lease: 3, ..put(key, key) }).await;
        }
        let all = range("a", "z");
        for read in [
            RangeRequest { limit: 2, ..all.clone() },
            RangeRequest { limit: 2, sort_order: 2, ..all.clone() },
            RangeRequest { sort_target: 4, sort_order: 2, ..all.clone() },
            RangeRequest { keys_only: true, ..all.clone() },
            RangeRequest { count_only: true, ..all.clone() },
            RangeRequest { count_only: true, limit: 1, ..all.clone() },
            RangeRequest { min_mod_revision: recorder.at(3), ..all.clone() },
            RangeRequest { serializable: true, ..all.clone() },
            RangeRequest { limit: -1, ..all.clone() },
        ] {
            let _ = recorder.txn(then(vec![read.clone().op()])).await;
            let _ = recorder.txn(then(vec![put("e", "1").op(), read.clone().op(), delete("f").op()])).await;
            let _ = recorder.txn(then(vec![delete_range("b", "d").op(), read.op()])).await;
            for key in ["b", "c"] {
                let _ = recorder.put(put(key, key)).await;
            }
        }
        for write in [
            PutRequest { ignore_value: true, ..put("a", "") },
            PutRequest { ignore_lease: true, ..put("a", "v") },
            PutRequest { ignore_value: true, ignore_lease: true, prev_kv: true, ..put("a", "") },
            PutRequest { ignore_value: true, ..put("new", "") },
            PutRequest { ignore_lease: true, ..put("new", "v") },
            PutRequest { lease: 3, ..put("new", "v") },
            PutRequest { lease: 4, ..put("newer", "v") },
            PutRequest { prev_kv: true, ..put("newest", "v") },
        ] {
            let _ = recorder.txn(then(vec![put("first", "1").op(), write.clone().op()])).await;
            let _ = recorder.txn(otherwise(vec![write.op()], vec![put("second", "1").op()])).await;
            show_all(recorder).await;
            let _ = recorder.lease_time_to_live(LeaseTimeToLiveRequest { id: 3, keys: true }).await;
        }
    })
    .await;
    pair.same("nested transactions", async |recorder| {
        let _ = recorder.put(put("a", "1")).await;
        let is = |key: &str, value: &'static str| compare(key, VALUE, EQUAL, Some(TargetUnion::Value(value.into())));
        // Compares of nested transactions see the state before the whole transaction.
        let inner = TxnRequest {
            compare: vec![is("a", "2")],
            success: vec![put("saw", "the new value").op()],
            failure: vec![put("saw", "the old value").op()],
        };
        let _ = recorder.txn(then(vec![put("a", "2").op(), inner.clone().op(), get("saw").op()])).await;
        let _ = recorder.txn(then(vec![put("a", "3").op(), inner.op(), get("a").op()])).await;
        let deep = then(vec![get("a").op(), then(vec![then(vec![put("deep", "1").op()]).op(), get("deep").op()]).op()]);
        let _ = recorder.txn(then(vec![deep.op(), then(vec![]).op(), get("deep").op()])).await;
        let read_only = then(vec![then(vec![get("a").op()]).op()]);
        let _ = recorder.txn(read_only.clone()).await;
        let _ = recorder.txn(then(vec![read_only.op(), otherwise(vec![], vec![delete("none").op()]).op()])).await;
        // Several siblings, each with nested ones of its own: each has to find its own branch.
        let side = |yes: bool, key: &'static str| {
            let operand = if yes { "3" } else { "no" };
            TxnRequest {
                compare: vec![is("a", operand)],
                success: vec![then(vec![put(key, "then").op()]).op()],
                failure: vec![otherwise(vec![], vec![put(key, "else").op()]).op(), get("a").op()],
            }
        };
        for (first, second, third) in [(true, false, true), (false, true, false), (false, false, true)] {
            let request = then(vec![
                side(first, "x").op(),
                get("a").op(),
                side(second, "y").op(),
                side(third, "z").op(),
                range("w", "zz").op(),
            ]);
            let _ = recorder.txn(request).await;
        }
        show_all(recorder).await;
    })
    .await;
    pair.finish("transactions");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_transactions_are_refused_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("too many operations", async |recorder| {
        let reads = |count: usize| vec![get("a").op(); count];
        let compares = |count: usize| vec![compare("a", VERSION, EQUAL, None); count];
        for count in [127, 128, 129] {
            let _ = recorder.txn(then(reads(count))).await;
            let _ = recorder.txn(TxnRequest { failure: reads(count), ..then(vec![]) }).await;
            let _ = recorder.txn(TxnRequest { compare: compares(count), ..then(vec![]) }).await;
            let puts = (0..count).map(|number| put(&format!("k{number}"), "1").op()).collect();
            let _ = recorder.txn(then(puts)).await;
            let all = TxnRequest { compare: compares(count), success: reads(count), failure: reads(count) };
            let _ = recorder.txn(all).await;
        }
        // A nested transaction has what the longest list around it left.
        for (outer, inner) in [(1, 127), (1, 128), (100, 28), (100, 29), (127, 1), (127, 2), (128, 0), (128, 1)] {
            for in_failure in [false, true] {
                let nested =
                    if in_failure { TxnRequest { failure: reads(inner), ..then(vec![]) } } else { then(reads(inner)) };
                let mut success = reads(outer - 1);
                success.push(nested.op());
                let _ = recorder.txn(then(success)).await;
            }
        }
        // Lists side by side do not add up.
        let half = then(reads(100));
        let _ = recorder.txn(then(vec![half.clone().op(); 28])).await;
        let _ = recorder.txn(then(vec![half.clone().op(); 29])).await;
        let _ = recorder.txn(TxnRequest { compare: compares(29), ..then(vec![half.op()]) }).await;
        let nested = |depth: usize| (1..depth).fold(then(vec![get("a").op()]), |inner, _| then(vec![inner.op()]));
        let _ = recorder.txn(nested(40)).await;
    })
    .await;
    pair.same("too deep", async |recorder| {
        let nested = |depth: usize| (1..depth).fold(then(vec![]), |inner, _| then(vec![inner.op()]));
        let _ = recorder.txn(nested(129)).await;
    })
    .await;
    pair.same("keys written twice", async |recorder| {
        let a = || put("a", "1").op();
        let b = || put("b", "1").op();
        let deletion = |key: &str, end: &str| delete_range(key, end).op();
        for success in [
            vec![a(), a()],
            vec![a(), delete("a").op()],
            vec![delete("a").op(), a()],
            vec![a(), deletion("a", "b")],
            vec![b(), deletion("a", "b")],
            vec![b(), deletion("a", "c")],
            vec![deletion("a", "c"), b()],
            vec![b(), deletion("\0", "\0")],
            vec![a(), deletion("b", "\0")],
            vec![deletion("b", "a"), b()],
            vec![deletion("b", "b"), b()],
            vec![delete("a").op(), delete("a").op()],
            vec![deletion("a", "c"), deletion("b", "d")],
            vec![get("a").op(), a(), get("a").op()],
            vec![then(vec![a()]).op(), a()],
            vec![a(), then(vec![a()]).op()],
            vec![a(), otherwise(vec![], vec![a()]).op()],
            vec![a(), otherwise(vec![a()], vec![]).op()],
            vec![otherwise(vec![a()], vec![a()]).op()],
            vec![otherwise(vec![a()], vec![a()]).op(), a()],
            vec![otherwise(vec![a()], vec![a(), a()]).op()],
            vec![otherwise(vec![a()], vec![b()]).op(), b()],
            vec![then(vec![a()]).op(), then(vec![a()]).op()],
            vec![then(vec![a()]).op(), then(vec![b()]).op()],
            vec![otherwise(vec![a()], vec![]).op(), otherwise(vec![], vec![a()]).op()],
            vec![then(vec![a()]).op(), delete("a").op()],
            vec![then(vec![delete("a").op()]).op(), a()],
            vec![then(vec![delete("a").op()]).op(), then(vec![a()]).op()],
            vec![then(vec![a()]).op(), then(vec![delete("a").op()]).op()],
            vec![otherwise(vec![delete("a").op()], vec![a()]).op()],
            vec![otherwise(vec![a()], vec![delete("a").op()]).op()],
            vec![otherwise(vec![deletion("a", "c")], vec![b()]).op(), then(vec![b()]).op()],
            vec![then(vec![deletion("a", "c")]).op(), then(vec![then(vec![b()]).op()]).op()],
            vec![then(vec![then(vec![then(vec![a()]).op()]).op()]).op(), a()],
            vec![then(vec![deletion("a", "b"), deletion("c", "d")]).op(), b(), put("c", "1").op()],
        ] {
            let _ = recorder.txn(then(success.clone())).await;
            let _ = recorder.txn(TxnRequest { failure: success, ..then(vec![]) }).await;
            show_all(recorder).await;
        }
        let _ = recorder.txn(TxnRequest { success: vec![a()], failure: vec![a()], compare: vec![] }).await;
    })
    .await;
    pair.same("operations that are wrong", async |recorder| {
        for wrong in [
            RequestOp { request: None },
            get("").op(),
            put("", "1").op(),
            delete("").op(),
            RangeRequest { sort_order: 9, ..get("a") }.op(),
            RangeRequest { sort_target: 9, ..get("a") }.op(),
            PutRequest { ignore_value: true, ..put("a", "1") }.op(),
            PutRequest { ignore_lease: true, lease: 4, ..put("a", "1") }.op(),
            then(vec![put("", "1").op()]).op(),
            then(vec![RequestOp { request: None }]).op(),
            TxnRequest { compare: vec![compare("", VERSION, EQUAL, None)], ..then(vec![]) }.op(),
            then(vec![put("a", "1").op(), put("a", "1").op()]).op(),
        ] {
            let _ = recorder.txn(then(vec![get("a").op(), wrong.clone()])).await;
            let _ = recorder.txn(otherwise(vec![wrong.clone()], vec![])).await;
            let _ = recorder.txn(TxnRequest { failure: vec![wrong, put("b", "1").op()], ..then(vec![]) }).await;
            show_all(recorder).await;
        }
    })
    .await;
    pair.finish("wrong transactions");
}
