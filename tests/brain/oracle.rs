//! The same requests to a real etcd and to KubeBrain: every reply must be the same but for ids and times.
//!
//! A scenario ([`recorder`]) runs on both stores ([`pair`]) from the same revision; all replies, refusals with their
//! codes and texts included, are compared as a whole ([`normal`] says what is left out). What KubeBrain answers
//! differently on purpose is listed in [`deviations`]. With `KUBEWHARF_TEST_STORE=etcd` etcd is compared with itself,
//! which shows what a scenario leaves to chance.

mod deviations;
mod leases;
mod normal;
mod others;
mod pair;
mod random;
mod reads;
mod recorder;
mod txns;
mod watches;
mod watching;
mod writes;
