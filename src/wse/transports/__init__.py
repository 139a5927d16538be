"""Where WebSockets come from: each module opens links and feeds the sessions behind them."""
