# The start-up task of a Windows runner image (preview). install.ps1 registers it; it runs as SYSTEM at every start.
#
# Windows runs nothing of its customData. What runnerpool gives a VM lies in C:\AzureData\CustomData.bin, as JSON: files (gzip,
# base64) by their paths under C:\runnerpool, the environment of the proxy, and the runner to install where the image has none.
# As on Linux the agent comes first, so that a set-up that fails can say so; the set-up is a second process of this script.
param([switch] $SetUp)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue' # which makes downloads slow

$Root = 'C:\runnerpool'
$CustomData = 'C:\AzureData\CustomData.bin'
$Settings = "$Root\etc\runnerpool\settings.json"
$Runner = "$Root\opt\actions-runner"
$State = "$Root\var\lib\runnerpool"
$Log = "$Root\var\log\runnerpool\setup.log"
$Python = 'C:\Python\python.exe'

function Write-Step([string] $Text) {
    [IO.File]::AppendAllText($Log, "$([DateTime]::UtcNow.ToString('yyyy-MM-ddTHH:mm:ssZ')) $Text`n") # no byte order mark
}

function Expand-Text([string] $Text) {
    $packed = [IO.MemoryStream]::new([Convert]::FromBase64String($Text))
    $plain = [IO.MemoryStream]::new()
    [IO.Compression.GZipStream]::new($packed, [IO.Compression.CompressionMode]::Decompress).CopyTo($plain)
    return , $plain.ToArray()
}

# Only SYSTEM and administrators may read below the root: there are the agent's token and, for a while, a JIT configuration.
function Expand-CustomData {
    New-Item -ItemType Directory -Force $Root, $State, (Split-Path $Log), (Split-Path $Settings) | Out-Null
    icacls.exe $Root /inheritance:r /grant '*S-1-5-18:(OI)(CI)F' '*S-1-5-32-544:(OI)(CI)F' | Out-Null
    $data = Get-Content -Raw -Encoding utf8 $CustomData | ConvertFrom-Json
    foreach ($file in $data.files.PSObject.Properties) {
        $path = Join-Path $Root $file.Name
        New-Item -ItemType Directory -Force (Split-Path $path) | Out-Null
        [IO.File]::WriteAllBytes($path, (Expand-Text $file.Value))
    }
    @{ environment = $data.environment; runner = $data.runner } | ConvertTo-Json | Out-File -Encoding utf8 $Settings
    Remove-Item $CustomData
}

function Set-ProxyEnvironment($Environment) {
    foreach ($variable in $Environment.PSObject.Properties) {
        [Environment]::SetEnvironmentVariable($variable.Name, $variable.Value, 'Process')
    }
}

function Install-Runner($Package) {
    if (Test-Path "$Runner\run.cmd") {
        Write-Step 'the image has a runner'
        return
    }
    if (-not $Package.url) { throw "the image has no runner in $Runner, and the pool names none to download" }
    Write-Step "downloading runner $($Package.version)"
    $download = "$env:TEMP\runner.zip"
    curl.exe --fail --silent --show-error --location --retry 5 --connect-timeout 10 --max-time 300 --output $download $Package.url
    if ($LASTEXITCODE -ne 0) { throw "the runner could not be downloaded: curl ended with $LASTEXITCODE" }
    $sum = (Get-FileHash -Algorithm SHA256 $download).Hash.ToLower()
    if ($Package.sha256 -and $sum -ne $Package.sha256) {
        throw "what came from $($Package.url) is not runner $($Package.version): its sha256 is $sum and should be $($Package.sha256)"
    }
    if (Test-Path "$Runner.new") { Remove-Item -Recurse -Force "$Runner.new" }
    Expand-Archive $download "$Runner.new"
    Move-Item "$Runner.new" $Runner # under its name only when it is whole
    Remove-Item $download
}

function Invoke-SetUp {
    Write-Step 'the set-up begins'
    $given = Get-Content -Raw -Encoding utf8 $Settings | ConvertFrom-Json
    Set-ProxyEnvironment $given.environment
    $authorities = "$Root\etc\runnerpool\authorities.pem"
    if ((Get-Item $authorities).Length -gt 0) {
        $pem = [regex]::Matches((Get-Content -Raw $authorities), '(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----')
        foreach ($certificate in $pem) {
            $certificate.Value | Out-File -Encoding ascii "$env:TEMP\authority.cer"
            Import-Certificate -FilePath "$env:TEMP\authority.cer" -CertStoreLocation Cert:\LocalMachine\Root | Out-Null
        }
    }
    Install-Runner $given.runner
    $script = "$Root\opt\runnerpool\setup.ps1"
    if ((Get-Item $script).Length -gt 0) {
        Write-Step "running the pool's setup_script"
        # Through cmd: Windows PowerShell takes what a program says on its error stream for an error of its own.
        cmd.exe /c "powershell.exe -NoProfile -NonInteractive -ExecutionPolicy Bypass -File $script >>$Log 2>&1"
        if ($LASTEXITCODE -ne 0) { throw "the setup_script ended with $LASTEXITCODE" }
    }
    $version = & "$Runner\bin\Runner.Listener.exe" --version
    if ($LASTEXITCODE -ne 0) { throw 'the runner does not tell its version' }
    [IO.File]::WriteAllText("$State\ready.new", $version) # without a byte order mark
    Move-Item -Force "$State\ready.new" "$State\ready" # the agent waits for it
    Write-Step 'the set-up is through'
}

if ($SetUp) {
    try { Invoke-SetUp } catch { Write-Step "the set-up failed in line $($_.InvocationInfo.ScriptLineNumber): $_"; exit 1 }
    exit 0
}

if (Test-Path $CustomData) { Expand-CustomData }
if (-not (Test-Path $Settings)) { exit 0 } # not one of ours
if (-not (Get-NetFirewallRule -Name runnerpool-agent -ErrorAction SilentlyContinue)) {
    New-NetFirewallRule -Name runnerpool-agent -DisplayName 'runnerpool agent' -Direction Inbound -Protocol TCP -LocalPort 8437 `
        -Action Allow | Out-Null
}
Set-ProxyEnvironment (Get-Content -Raw -Encoding utf8 $Settings | ConvertFrom-Json).environment
if (-not (Test-Path "$State\ready")) {
    Start-Process -WindowStyle Hidden powershell.exe `
        "-NoProfile -NonInteractive -ExecutionPolicy Bypass -File `"$PSCommandPath`" -SetUp"
}
while ($true) {
    # The runner is a child of the agent and outlives it: a new agent finds it again.
    cmd.exe /c "$Python $Root\opt\runnerpool\agent_windows.py --root $Root 2>>$Root\var\log\runnerpool\agent.log"
    Start-Sleep -Seconds 2
}
