"""Symbols by convention: indices, the suffixes of exchanges, currencies."""

from collections.abc import Mapping

# symbol: (Yahoo's name, readable name, venue, calendar, currency)
INDICES: Mapping[str, tuple[str, str, str, str, str]] = {
    "SPX": ("^GSPC", "S&P 500", "SNP", "XNYS", "USD"),
    "NDX": ("^NDX", "Nasdaq 100", "NIM", "XNYS", "USD"),
    "IXIC": ("^IXIC", "Nasdaq Composite", "NIM", "XNYS", "USD"),
    "DJI": ("^DJI", "Dow Jones Industrial Average", "DJI", "XNYS", "USD"),
    "RUT": ("^RUT", "Russell 2000", "WCB", "XNYS", "USD"),
    "VIX": ("^VIX", "CBOE Volatility Index", "WCB", "XNYS", "USD"),
    "FTSE": ("^FTSE", "FTSE 100", "FGI", "XLON", "GBP"),
    "DAX": ("^GDAXI", "DAX", "GER", "XETR", "EUR"),
    "CAC": ("^FCHI", "CAC 40", "PAR", "XPAR", "EUR"),
    "N225": ("^N225", "Nikkei 225", "OSA", "XTKS", "JPY"),
    "HSI": ("^HSI", "Hang Seng Index", "HKG", "XHKG", "HKD"),
}
# suffix of a listing: (calendar, currency)
LISTINGS: Mapping[str, tuple[str, str]] = {
    "AS": ("XAMS", "EUR"),
    "AX": ("XASX", "AUD"),
    "BR": ("XBRU", "EUR"),
    "CO": ("XCSE", "DKK"),
    "DE": ("XETR", "EUR"),
    "F": ("XFRA", "EUR"),
    "HE": ("XHEL", "EUR"),
    "HK": ("XHKG", "HKD"),
    "IR": ("XDUB", "EUR"),
    "JO": ("XJSE", "ZAR"),
    "KS": ("XKRX", "KRW"),
    "L": ("XLON", "GBP"),
    "LS": ("XLIS", "EUR"),
    "MC": ("XMAD", "EUR"),
    "MI": ("XMIL", "EUR"),
    "MX": ("XMEX", "MXN"),
    "NZ": ("XNZE", "NZD"),
    "OL": ("XOSL", "NOK"),
    "PA": ("XPAR", "EUR"),
    "SA": ("BVMF", "BRL"),
    "SI": ("XSES", "SGD"),
    "SS": ("XSHG", "CNY"),
    "ST": ("XSTO", "SEK"),
    "SW": ("XSWX", "CHF"),
    "T": ("XTKS", "JPY"),
    "TA": ("XTAE", "ILS"),
    "TO": ("XTSE", "CAD"),
    "TW": ("XTAI", "TWD"),
    "VI": ("XWBO", "EUR"),
    "WA": ("XWAR", "PLN"),
}
# fmt: off
CURRENCIES = frozenset((
    "USD", "EUR", "GBP", "JPY", "CHF", "AUD", "CAD", "NZD", "SEK", "NOK", "DKK", "PLN", "CZK",
    "HUF", "CNY", "CNH", "HKD", "SGD", "KRW", "INR", "MXN", "ZAR", "TRY", "BRL", "ILS", "THB",
))
# fmt: on
