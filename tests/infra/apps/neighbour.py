GREETING = "only on the machine that deploys"
