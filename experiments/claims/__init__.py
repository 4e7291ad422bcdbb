"""The paper's claims as experiments: flag files, measures and the scoreboard."""
