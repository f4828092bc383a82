"""runnerpool: a fresh Azure VM for every GitHub Actions job."""
