//! An engine inside a program: serves a socket until standard input ends.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: serve SOCKET")?;
    let engine = verbring::Engine::builder().socket(&path).spawn()?;
    println!("listening at {path}");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    engine.shutdown()?;
    Ok(())
}
