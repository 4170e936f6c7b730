//! Runs one operation on a store and dies in it, as by `kill -9`, before a chosen call.
//!
//! Arguments: the operation's name, the store's folder, the file with the delta to receive,
//! and the number of the call to die at, or `count`. Then nothing goes wrong, and the count
//! of calls is printed.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use lifeboat_harness::Operation;
use lifeboat_store::Store;
use lifeboat_sys::disk::{DiskPort, Fault, FaultDisk, RealDisk};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(calls) => {
            println!("{calls}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<u64, String> {
    let [operation, root, stream, call] = arguments else {
        return Err("usage: lifeboat-crash-child OPERATION FOLDER DELTA CALL|count".to_owned());
    };
    let operation: Operation = operation.parse()?;
    let stream = std::fs::read(stream).map_err(|error| format!("read {stream}: {error}"))?;
    let disk = Arc::new(match call.as_str() {
        "count" => FaultDisk::counting(Arc::new(RealDisk)),
        call => {
            let call = call
                .parse()
                .map_err(|_| format!("{call} is no number of a call"))?;
            FaultDisk::failing_at(Arc::new(RealDisk), call, Fault::Kill)
        }
    });
    let port = Arc::clone(&disk) as Arc<dyn DiskPort>;
    let mut store = Store::open(port, Path::new(root), "crash child")
        .map_err(|error| format!("open: {error}"))?;
    operation
        .run(&mut store, &stream)
        .map_err(|error| format!("{}: {error}", operation.name()))?;
    Ok(disk.calls())
}
